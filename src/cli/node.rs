//! `podweir node`: the agent of a node, and what one asks it.

mod ask;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};

use crate::cni;
use crate::config::given::{Given, process_environment};
use crate::config::log_levels;
use crate::config::settings::Face;
use crate::config::value;
use crate::node::credentials::Credentials;
use crate::node::http::Listen;
use crate::node::installer::{ChainMode, Installation, TYPE};
use crate::node::settings::{AgentSettings, AmbientFlags, ObjectName, OnFailure};
use crate::node::{self, Policy};

use super::args::{number, path_of, text_of};
use super::error::CliError;
use super::{confine, source};

const EXAMPLES: &str = "\
The agent puts the plugin in place and keeps it there, answers it, watches the rules of
every pod of its node and repairs them. It runs as a DaemonSet: cni-conf/README.md says how
to install the chart. Nothing is removed when it ends, only by `podweir node uninstall` or
when its DaemonSet is deleted.

Exit status: 0 done (status: ready; why: intercepted, enrolled or left alone on purpose), 1
failed or not so, 2 usage.

Examples:
  podweir node run --node-name node1
      The agent, in the foreground; ends at SIGTERM.
  podweir node status
      Whether pods on this node are intercepted, and what is missing if not.
  podweir node why shop/web-0
      What was decided about this pod, why, and what happened to it since.
  kubectl -n podweir-system exec ds/podweir-node -- podweir node why shop/web-0
      The same from elsewhere.
  podweir node audit
      What podweir audit --cluster asks every agent for: the rules of this node's pods.
";

/// Where a pod finds the token of its account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn path(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("PATH").value_parser(value_parser!(PathBuf)).default_value(default).help(help)
}

fn text(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn with_places(command: Command) -> Command {
    command.args([
        path("cni-bin-dir", "/opt/cni/bin", "Folder from which the container runtime starts plugins"),
        path("cni-conf-dir", "/etc/cni/net.d", "Folder from which the container runtime reads network configurations"),
        text("chain", "MODE", "How the plugin gets into the chain: merge, drop-in, standalone (Multus) or none")
            .default_value("merge")
            .value_parser(ChainMode::NAMES),
        run_dir(),
    ])
}

fn run_dir() -> Arg {
    path("run-dir", "/var/run/podweir", "Folder of the agent's socket, the plugin's log and its attachments")
}

fn json_flag() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Answer in JSON")
}

/// The `node` subcommand.
pub(super) fn command() -> Command {
    let run = with_places(Command::new("run").about("Run the agent of this node")).args([
        text("node-name", "NAME", "This node's name in Kubernetes; default: the variable NODE_NAME"),
        text("daemon-set", "NAMESPACE/NAME", "The DaemonSet of the agent: when it is deleted, podweir is removed from the node; default: the variables POD_NAMESPACE and DAEMON_SET"),
        path("host-proc", "/proc", "Where the node's /proc is mounted"),
        text("exclude-namespaces", "NAMES", "Namespaces of Kubernetes whose pods are left alone")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .default_value("kube-system"),
        text("interception", "JSON", "Options beneath those of every pod, as in the netconf's interception"),
        text("plugin-log-level", "LEVEL", "The plugin's log level: none, error, warn, info or debug").default_value("info"),
        text("agent-timeout", "TIME", "How long a pod's start waits for an agent that is away").default_value("30s"),
        text("verify-interval", "TIME", "How often rules are looked at of whose change the kernel does not tell")
            .default_value("60s"),
        Arg::new("heal")
            .long("heal")
            .value_name("BOOL")
            .value_parser(value_parser!(bool))
            .default_value("true")
            .help("Repair rules that are not as they should be"),
        text("heal-established", "WHAT", "What happens to connections that missing rules would break when they are made: break, or wait for their end (at most 2 minutes)")
            .default_value("break")
            .value_parser(["break", "wait"]),
        text("on-failure", "WHAT", "What happens to a pod that cannot be repaired: leave, evict or label")
            .default_value("leave")
            .value_parser(OnFailure::NAMES),
        text("listen", "ADDRESS", "Where metrics and probes are asked for; none: nowhere").default_value(":15014"),
        Arg::new("condition")
            .long("condition")
            .value_name("BOOL")
            .value_parser(value_parser!(bool))
            .default_value("true")
            .help("Tell the node's condition podweir.dev/Intercepting"),
        Arg::new("policy-reports")
            .long("policy-reports")
            .action(ArgAction::SetTrue)
            .help("Keep a PolicyReport (wgpolicyk8s.io/v1alpha2) for this node in each namespace with pods of it"),
        Arg::new("ambient")
            .long("ambient")
            .action(ArgAction::SetTrue)
            .help("Serve ztunnel as well: pods in ambient mode, by the label istio.io/dataplane-mode"),
        path("ztunnel-socket", "/var/run/ztunnel/ztunnel.sock", "Where ztunnel connects to, with --ambient"),
        Arg::new("ambient-dns-capture")
            .long("ambient-dns-capture")
            .value_name("BOOL")
            .value_parser(value_parser!(bool))
            .default_value("true")
            .help("Hand DNS of pods in ambient mode to ztunnel, unless a pod's annotation says otherwise"),
        text("ambient-backend", "BACKEND", "What programs pods in ambient mode and the node: auto, nftables, iptables-nft or iptables-legacy")
            .default_value("auto"),
        text("ambient-ip-families", "WHICH", "Families to program in pods in ambient mode and on the node: both, ipv4 or ipv6")
            .default_value("both"),
        Arg::new("kubelet-uid")
            .long("kubelet-uid")
            .value_name("UID")
            .value_parser(number(0..=u32::MAX, "the number of a user"))
            .help("The user by whom the kubelet's probes are told; default: that of the kubelet found in --host-proc"),
        text("api-server", "URL", "The API server; default: the variables KUBERNETES_SERVICE_HOST and _PORT"),
        path("account", ACCOUNT, "Folder with the account's token and ca.crt"),
        text("kubeconfig", "PATH", "Ask the API server as this file says, instead of by --account")
            .value_parser(value_parser!(PathBuf)),
    ]);
    let uninstall = with_places(
        Command::new("uninstall")
            .about("Remove the plugin, and ambient mode's rules of the node; pods that run keep their rules"),
    );
    let status =
        Command::new("status").about("Whether pods on this node are intercepted").args([run_dir(), json_flag()]);
    let list = Command::new("list").about("Every pod of this node with its state").args([run_dir(), json_flag()]);
    let why = Command::new("why")
        .about("What was decided about a pod, why, and what happened to it")
        .arg(Arg::new("pod").value_name("NAMESPACE/POD").required(true))
        .args([run_dir(), json_flag()]);
    let audit = Command::new("audit")
        .about("What the kernel has in the pods of this node, for podweir audit --cluster and --facts: lines of JSON")
        .args([
            run_dir(),
            Arg::new("host-proc")
                .long("host-proc")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Where the node's /proc is mounted [default: /host/proc where that is, else /proc]"),
        ]);
    Command::new("node")
        .about("The agent that installs the plugin on a node, answers it, and watches and repairs pods' rules")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_long_help(EXAMPLES)
        .subcommands([run, uninstall, status, list, why, audit])
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), CliError> {
    match matches.subcommand() {
        Some(("run", matches)) => {
            confine::to_the_nodes_agent();
            Ok(node::run(settings(matches)?)?)
        }
        Some(("uninstall", matches)) => {
            confine::to_uninstalling();
            Ok(node::uninstall(&installation(matches, Value::Null)?, &path_of(matches, "run-dir"))?)
        }
        Some(("status", matches)) => ask::status(matches),
        Some(("list", matches)) => ask::list(matches),
        Some(("why", matches)) => ask::why(matches),
        Some(("audit", matches)) => ask::audit(matches),
        _ => Err(CliError::Usage("node: no such command".into())),
    }
}

fn duration(matches: &ArgMatches, name: &str) -> Result<Duration, CliError> {
    let text = text_of(matches, name).unwrap_or_default();
    value::duration(&text).map_err(|invalid| CliError::Usage(invalid.of_option(&format!("--{name}"))))
}

/// The value of a flag, or else of a variable; the error names both.
fn text_or_variable(matches: &ArgMatches, name: &str, variable: &str) -> Result<String, CliError> {
    let given = text_of(matches, name).or_else(|| process_environment(variable)).filter(|text| !text.is_empty());
    given.ok_or_else(|| CliError::Usage(format!("give --{name}, or set the variable {variable}")))
}

fn installation(matches: &ArgMatches, entry: Value) -> Result<Installation, CliError> {
    let mode = text_of(matches, "chain").unwrap_or_default();
    Ok(Installation {
        executable: "/proc/self/exe".into(),
        bin_dir: path_of(matches, "cni-bin-dir"),
        conf_dir: path_of(matches, "cni-conf-dir"),
        mode: ChainMode::parse(&mode)
            .ok_or_else(|| CliError::invalid("--chain", &mode, &ChainMode::NAMES.join(", ")))?,
        entry,
        own_version: "1.0.0".into(),
    })
}

fn settings(matches: &ArgMatches) -> Result<AgentSettings, CliError> {
    let run_dir = path_of(matches, "run-dir");
    let exclude: Vec<String> = matches
        .get_many::<String>("exclude-namespaces")
        .into_iter()
        .flatten()
        .filter(|n| !n.is_empty())
        .cloned()
        .collect();
    let daemon_set = daemon_set(matches)?;
    duration(matches, "agent-timeout")?;
    let interception: Value = match text_of(matches, "interception") {
        Some(text) => serde_json::from_str(&text).map_err(|e| {
            CliError::invalid("--interception", &text, &format!("a JSON object (column {})", e.column()))
        })?,
        None => json!({}),
    };
    let log_level = text_of(matches, "plugin-log-level").unwrap_or_default();
    log_levels::by_scope(&log_level).map_err(|invalid| CliError::Usage(invalid.of_option("--plugin-log-level")))?;
    let mut entry = json!({
        "type": TYPE,
        "cni_agent_run_dir": run_dir,
        "exclude_namespaces": exclude,
        "plugin_log_level": log_level,
        "agent_timeout": text_of(matches, "agent-timeout"),
        "capabilities": { "io.kubernetes.cri.pod-annotations": true },
    });
    if let Some(name) = &daemon_set {
        entry["pod_namespace"] = name.namespace.clone().into();
    }
    // What makes no sense is refused also where ambient mode is off.
    let ambient = Some(ambient_given(matches)?).filter(|_| matches.get_flag("ambient"));
    if ambient.is_some() {
        entry["ambient"] = true.into();
    }
    // The plugin checks its entry at every call; a mistake shows here, before it is written.
    let mut checked = entry.clone();
    checked["interception"] = interception;
    let checked = cni::node_options(checked.to_string().as_bytes());
    let defaults = checked.map_err(|e| CliError::Usage(e.msg))?.options;
    let listen = match text_of(matches, "listen").as_deref() {
        None | Some("none") => None,
        Some(text) => Some(Listen::parse(text).ok_or_else(|| {
            CliError::invalid("--listen", text, ":15014 for all addresses, one such as 10.0.0.10:15014, or none")
        })?),
    };
    let on_failure = text_of(matches, "on-failure").unwrap_or_default();
    Ok(AgentSettings {
        node: text_or_variable(matches, "node-name", "NODE_NAME")?,
        run_dir,
        host_proc: path_of(matches, "host-proc"),
        credentials: credentials(matches)?,
        installation: installation(matches, entry)?,
        policy: Policy { exclude_namespaces: exclude, defaults, read_init },
        heal: matches.get_one("heal").copied().unwrap_or(true),
        wait_for_older: text_of(matches, "heal-established").as_deref() == Some("wait"),
        on_failure: OnFailure::parse(&on_failure)
            .ok_or_else(|| CliError::invalid("--on-failure", &on_failure, "leave, label or evict"))?,
        verify_interval: duration(matches, "verify-interval")?,
        listen,
        daemon_set,
        condition: matches.get_one("condition").copied().unwrap_or(true),
        policy_reports: matches.get_flag("policy-reports"),
        ambient,
    })
}

fn ambient_given(matches: &ArgMatches) -> Result<AmbientFlags, CliError> {
    let backend = text_of(matches, "ambient-backend").unwrap_or_default();
    let refused = |flag: &str, invalid: value::Invalid| CliError::Usage(invalid.of_option(flag));
    let backend = crate::config::ambient::backend(&backend).map_err(|invalid| refused("--ambient-backend", invalid))?;
    let families = text_of(matches, "ambient-ip-families").unwrap_or_default();
    let families =
        crate::config::ambient::families(&families).map_err(|invalid| refused("--ambient-ip-families", invalid))?;
    Ok(AmbientFlags {
        socket: path_of(matches, "ztunnel-socket"),
        dns: matches.get_one("ambient-dns-capture").copied().unwrap_or(true),
        backend,
        families,
        kubelet_uid: matches.get_one("kubelet-uid").copied(),
    })
}

fn daemon_set(matches: &ArgMatches) -> Result<Option<ObjectName>, CliError> {
    let variables =
        || Some(format!("{}/{}", process_environment("POD_NAMESPACE")?, process_environment("DAEMON_SET")?));
    let Some(text) = text_of(matches, "daemon-set").or_else(variables) else { return Ok(None) };
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Some(ObjectName { namespace: namespace.into(), name: name.into() }))
        }
        _ => Err(CliError::invalid("--daemon-set", &text, "NAMESPACE/NAME, such as mesh/podweir-node")),
    }
}

fn credentials(matches: &ArgMatches) -> Result<Credentials, CliError> {
    if let Some(path) = matches.get_one::<PathBuf>("kubeconfig") {
        return Ok(Credentials::Kubeconfig(path.clone()));
    }
    let server = match text_of(matches, "api-server") {
        Some(server) => server,
        None => {
            let host = process_environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
            let host = host.ok_or_else(|| {
                CliError::Usage("where is the API server? give --api-server or --kubeconfig, or run it in a pod, which has the variable KUBERNETES_SERVICE_HOST".into())
            })?;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let port = process_environment("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".into());
            format!("https://{host}:{port}")
        }
    };
    Ok(Credentials::ServiceAccount { server, folder: path_of(matches, "account") })
}

/// The options of an init container, or in words why its arguments make none.
fn read_init(arguments: &[String], variables: &BTreeMap<String, String>) -> Result<(Given, Face), String> {
    source::given_of_init(arguments, variables).map_err(|e| e.to_string())
}
