//! Commands that ask the agent of a node, and print its answers.

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use serde_json::{Value, json};

use crate::cni::agent::{self, message};
use crate::node;

use super::super::args::{path_of, text_of};
use super::super::error::CliError;
use super::super::{confine, output};

/// How long an agent may take to answer a person.
const PATIENCE: Duration = Duration::from_secs(6);

fn ask(matches: &ArgMatches, request: message::Request) -> Result<Value, CliError> {
    confine::to_asking();
    answer(matches, request)
}

fn answer(matches: &ArgMatches, request: message::Request) -> Result<Value, CliError> {
    let socket = agent::socket(&path_of(matches, "run-dir"));
    match agent::ask(&socket, request, PATIENCE) {
        Ok(message::Answer::Report { report }) => Ok(report),
        Ok(message::Answer::Error { message, details, .. }) => Err(CliError::Failed(format!("{message}; {details}"))),
        Ok(_) => {
            Err(CliError::Failed("the agent's answer is one to another question; is it of another release?".into()))
        }
        Err(error) => Err(CliError::Failed(format!(
            "no agent answers on this node: {error}; kubectl get pods -A -o wide -l app.kubernetes.io/name=podweir shows the agents"
        ))),
    }
}

/// Every pod of the node, page by page.
fn pods(matches: &ArgMatches) -> Result<Value, CliError> {
    whole(|from| answer(matches, message::Request::List { from: Some(from) }))
}

/// Joins the pages of a list. An agent of an older release has no pages: its one answer names no next
/// page.
fn whole(mut page: impl FnMut(String) -> Result<Value, CliError>) -> Result<Value, CliError> {
    let (mut pods, mut from) = (Vec::new(), String::new());
    loop {
        let mut report = page(from.clone())?;
        let before = pods.len();
        if let Some(rows) = report["pods"].as_array_mut() {
            pods.append(rows);
        }
        match report["next"].as_str() {
            None => return Ok(json!({ "pods": pods })),
            Some(next) if pods.len() > before && next != from => from = next.to_owned(),
            Some(_) => {
                let problem = "the agent's list does not end: a page of it leads to itself; is it of another release?";
                return Err(CliError::Failed(problem.into()));
            }
        }
    }
}

fn shown(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// Whether pods on this node are intercepted.
pub(super) fn status(matches: &ArgMatches) -> Result<(), CliError> {
    let report = ask(matches, message::Request::Status {})?;
    let ready = report["ready"] == true;
    if matches.get_flag("json") {
        output::print(&format!("{report:#}\n"))?;
    } else {
        let mut text = format!(
            "node     {}\nready    {}\nchain    {}\n",
            shown(&report["node"]),
            if ready { "yes" } else { "no" },
            shown(&report["chain"])
        );
        let age = report["watchAgeSeconds"].as_u64().map_or_else(|| "never".into(), |s| format!("{s} s ago"));
        text += &format!("watch    heard {age}, {} pods known\n", report["knownPods"]);
        if let Some(ambient) = report["ambient"].as_object() {
            let probe = ambient.get("probe").and_then(Value::as_str).unwrap_or("no pod to be probed yet");
            text += &format!(
                "ambient  {} ztunnels connected, {} know of every pod; {} pods; {probe}\n",
                ambient["ztunnels"], ambient["ztunnelsWithEveryPod"], ambient["pods"]
            );
        }
        for (state, count) in report["pods"].as_object().into_iter().flatten().filter(|(_, count)| **count != 0) {
            text += &format!("pods     {count} {state}\n");
        }
        for error in report["lastErrors"].as_array().into_iter().flatten() {
            let times = match error["times"].as_u64() {
                Some(2..) => format!(", {} times", error["times"]),
                _ => String::new(),
            };
            text += &format!(
                "error    {} {}: {}{times}\n",
                shown(&error["time"]),
                shown(&error["cause"]),
                shown(&error["what"])
            );
        }
        output::print(&text)?;
    }
    let problems: Vec<&str> = report["problems"].as_array().into_iter().flatten().map(shown).collect();
    if ready { Ok(()) } else { Err(CliError::Failed(problems.join("; "))) }
}

/// Reads the rules of the pods that the agent knows, and prints a report line by line.
pub(super) fn audit(matches: &ArgMatches) -> Result<(), CliError> {
    confine::to_the_nodes_agent();
    let status = answer(matches, message::Request::Status {})?;
    let list = pods(matches)?;
    let proc = matches.get_one::<PathBuf>("host-proc").cloned().unwrap_or_else(|| {
        let mounted = PathBuf::from("/host/proc");
        if mounted.join("1").exists() { mounted } else { "/proc".into() }
    });
    node::facts::tell(&status, &list, &proc, |line| output::print(&format!("{line}\n")))
}

/// The pods of the node, a line each.
pub(super) fn list(matches: &ArgMatches) -> Result<(), CliError> {
    confine::to_asking();
    let report = pods(matches)?;
    if matches.get_flag("json") {
        return output::print(&format!("{report:#}\n"));
    }
    let rows = report["pods"].as_array().into_iter().flatten();
    let line = |row: &Value| {
        let why = row[4].as_str().map(|why| format!("  {why}")).unwrap_or_default();
        format!("{:<14} {}/{}{why}\n", shown(&row[2]), shown(&row[0]), shown(&row[1]))
    };
    let text: String = rows.map(line).collect();
    output::print(&text)
}

/// What was decided about a pod, and what happened to it.
pub(super) fn why(matches: &ArgMatches) -> Result<(), CliError> {
    let pod = text_of(matches, "pod").unwrap_or_default();
    let (namespace, name) =
        pod.split_once('/').ok_or_else(|| CliError::invalid("POD", &pod, "NAMESPACE/POD, such as shop/web-0"))?;
    let request = message::Request::Why { namespace: namespace.into(), name: name.into() };
    let report = ask(matches, request)?;
    let decision = &report["decision"];
    if matches.get_flag("json") {
        output::print(&format!("{report:#}\n"))?;
    } else {
        let verdict = match (&decision["intercept"], &decision["ambient"]) {
            (Value::Bool(true), _) => "intercepted",
            (_, Value::Bool(true)) => "in ambient mode",
            _ if report["state"] == "failed" => "refused",
            _ => "not intercepted",
        };
        let mut text = format!(
            "pod      {pod}\ndecision {verdict}: {}\nstate    {} (since {})\n",
            shown(&decision["why"]),
            shown(&report["sentence"]),
            shown(&report["since"])
        );
        if report["verified"].is_string() {
            text += &format!("verified {}\n", shown(&report["verified"]));
        }
        for (name, setting) in decision["options"].as_object().into_iter().flatten() {
            text += &format!("option   {name} = {} ({})\n", shown(&setting["value"]), shown(&setting["source"]));
        }
        for warning in decision["warnings"].as_array().into_iter().flatten() {
            text += &format!("warning  {}\n", shown(warning));
        }
        for happening in report["history"].as_array().into_iter().flatten() {
            text += &format!("{}  {}\n", shown(&happening["time"]), shown(&happening["what"]));
        }
        output::print(&text)?;
    }
    match report["state"].as_str() {
        Some("intercepted" | "enrolled" | "left-alone" | "ended") => Ok(()),
        _ => Err(CliError::Failed(format!("pod {pod} is not as it should be"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_put_together_and_an_older_agents_one_answer_is_all() {
        let mut asked = Vec::new();
        let list = whole(|from| {
            asked.push(from);
            Ok(match asked.len() {
                1 => json!({ "pods": [["a", "1"], ["a", "2"]], "next": "a/3/u" }),
                2 => json!({ "pods": [["a", "3"]], "next": "b/1/u" }),
                _ => json!({ "pods": [["b", "1"]] }),
            })
        });
        assert_eq!(list.unwrap(), json!({ "pods": [["a", "1"], ["a", "2"], ["a", "3"], ["b", "1"]] }));
        assert_eq!(asked, ["", "a/3/u", "b/1/u"]);
        let old = json!({ "pods": [["a", "1"]] });
        assert_eq!(whole(|_| Ok(old.clone())).unwrap(), old);
        // What would never end is an error, and so is what an agent refuses in the middle.
        for endless in [json!({ "pods": [], "next": "a/1/u" }), json!({ "pods": [["a", "1"]], "next": "a/1/u" })] {
            assert!(whole(|_| Ok(endless.clone())).unwrap_err().to_string().contains("does not end"));
        }
        let refuses = |from: String| match from.as_str() {
            "" => Ok(json!({ "pods": [["a", "1"]], "next": "a/2/u" })),
            _ => Err(CliError::Failed("no".into())),
        };
        assert_eq!(whole(refuses).unwrap_err().to_string(), "no");
    }
}
