//! Input that makes no sense is refused before the kernel is touched: exit status 2, one
//! message with the option, the value, and what would be right.

use crate::fixture::{Namespace, PODWEIR};

/// Runs both faces and expects a usage error that says all of `words`.
fn refused(namespace: &Namespace, arguments: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    for face in ["init", "istio-iptables"] {
        let all: Vec<&str> = std::iter::once(face).chain(arguments.iter().copied()).collect();
        let output = namespace.command(PODWEIR, &all, variables);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{all:?} {variables:?}: {log}");
        assert!(output.stdout.is_empty(), "{all:?}");
        for word in words {
            assert!(log.contains(word), "{all:?} {variables:?}: no '{word}' in: {log}");
        }
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let namespace = Namespace::new();
    let before = namespace.everything();
    let many_groups = (1..=65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let flags: &[(&[&str], &[&str])] = &[
        (&["-b", "99999"], &["-b/--istio-inbound-ports", "'99999'", "from 1 to 65535"]),
        (&["-b", "abc"], &["-b/", "'abc'"]),
        (&["-b", "0"], &["-b/", "'0'"]),
        (&["-b", "*,80"], &["-b/", "'*'", "list"]),
        (&["-b", "80-70"], &["-b/", "'80-70'", "ends before it starts"]),
        (&["-p", "abc"], &["-p/--envoy-port", "'abc'", "one port"]),
        (&["-p", "0"], &["-p/", "'0'"]),
        (&["-p", ""], &["-p/", "''"]),
        (&["-p", "70000"], &["-p/", "'70000'"]),
        (&["-p", "15001-15010"], &["-p/", "'15001-15010'"]),
        (&["-z", "x"], &["-z/"]),
        (&["-e", "x"], &["-e/"]),
        (&["-u", "nobody-of-that-name"], &["-u/--proxy-uid", "'nobody-of-that-name'", "no known user"]),
        (&["-u", "4294967296"], &["-u/", "'4294967296'"]),
        (&["-g", "no-such-group"], &["-g/", "no known group"]),
        (&["-i", "notacidr"], &["-i/--istio-service-cidr", "'notacidr'", "CIDR"]),
        (&["-i", "010.0.0.0/8"], &["-i/", "'010.0.0.0/8'"]),
        (&["-x", "10.0.0.0/08"], &["-x/", "'10.0.0.0/08'"]),
        (&["-i", "10.0.0.0/33"], &["-i/", "'10.0.0.0/33'"]),
        (&["-i", "*,10.0.0.0/8"], &["-i/", "'*'"]),
        (&["-x", "*"], &["-x/--istio-service-exclude-cidr", "'*'"]),
        (&["-d", "http"], &["-d/"]),
        (&["-q", "1-"], &["-q/"]),
        (&["-o", "-5"], &["-o"]),
        (&["-m", "BOGUS"], &["-m/", "'BOGUS'", "REDIRECT or TPROXY"]),
        (&["-m", ""], &["-m/"]),
        (&["-t", "abc"], &["-t/", "'abc'"]),
        (&["-t", "0"], &["-t/"]),
        (&["-r", "abc"], &["-r/", "'abc'"]),
        (&["-r", "253"], &["-r/", "'253'", "default"]),
        (&["-r", "254"], &["-r/", "main"]),
        (&["-r", "255"], &["-r/", "local"]),
        (&["-c", "this-name-is-far-too-long"], &["-c/", "25 characters", "15"]),
        (&["-c", "eth0/1"], &["-c/", "'/'"]),
        (&["-k", "eth 0"], &["-k/", "' '"]),
        (&["--exclude-outbound-uids", "5-1"], &["--exclude-outbound-uids", "'5-1'"]),
        (&["--backend", "ebtables"], &["--backend", "'ebtables'", "iptables-legacy"]),
        (&["--ip-families", "ipv5"], &["--ip-families", "'ipv5'"]),
        (&["--force-iptables-binary", "new"], &["--force-iptables-binary", "legacy or nft"]),
        (&["--probe-timeout", "soon"], &["--probe-timeout", "'soon'", "5s"]),
        (&["--iptables-probe-port", "0"], &["--iptables-probe-port"]),
        (&["--lock-timeout", "-1s"], &["--lock-timeout"]),
        (&["--redirect-dns=perhaps"], &["--redirect-dns", "'perhaps'", "true or false"]),
        (&["--backend", "nftables", "--force-iptables-binary", "nft"], &["--backend", "--force-iptables-binary"]),
        (&["--cleanup-only", "--run-validation"], &["--cleanup-only", "--run-validation"]),
        (&["--log_output_level", "default:loud"], &["--log_output_level", "'loud'"]),
        (&["--no-such-flag"], &["--no-such-flag"]),
        (&["stray"], &["stray"]),
        (&["-b"], &["--istio-inbound-ports"]),
        (&["--json"], &["--print-config"]),
    ];
    for (arguments, words) in flags {
        refused(&namespace, arguments, &[], words);
    }
    let variables: &[(&str, &str, &[&str])] = &[
        ("DRY_RUN", "yes please", &["variable DRY_RUN", "'yes please'", "true or false"]),
        ("PROBE_TIMEOUT", "soon", &["variable PROBE_TIMEOUT", "'soon'"]),
        ("INBOUND_CAPTURE_PORT", "http", &["variable INBOUND_CAPTURE_PORT", "'http'"]),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", &many_groups, &["ISTIO_OUTBOUND_OWNER_GROUPS", "65 groups", "64"]),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "no-such-group", &["no known group"]),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "*,5", &["'*,5'", "beside groups"]),
        ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "no-such-group", &["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"]),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8", &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8"]),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/7", &["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"]),
        ("PODWEIR_BACKEND", "x", &["variable PODWEIR_BACKEND"]),
    ];
    for (name, value, words) in variables {
        refused(&namespace, &[], &[(name, value)], words);
    }
    assert_eq!(before, namespace.everything());
}

#[test]
fn sloppy_ranges_mean_what_they_say() {
    let namespace = Namespace::new();
    let log = namespace.ok(&["init", "-i", "*", "-x", "10.1.2.3/16,1.2.3.4"]);
    assert!(log.contains("'10.1.2.3/16' has host bits set; 10.1.0.0/16 is used"), "{log}");
    let rules = namespace.print("nft", &["list", "ruleset"]);
    assert!(rules.contains("ip daddr { 1.2.3.4, 10.1.0.0/16 }"), "{rules}");
}

#[test]
fn a_proxy_user_that_nobody_knows_is_told() {
    let namespace = Namespace::new();
    let told = |variables: &[(&str, &str)], arguments: &[&str]| {
        let output = namespace.command(PODWEIR, &[&["init", "--dry-run"], arguments].concat(), variables);
        assert!(output.status.success());
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        (script, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let unknown = [("ENVOY_USER", "no-such-user")];
    let (script, log) = told(&unknown, &[]);
    assert!(script.contains("skuid 1337") && log.contains("'no-such-user' is no user"), "{log}");
    // Where it does not count, it is not spoken of.
    for (variables, arguments) in [(&unknown[..], &["-u", "7"][..]), (&[("ENVOY_USER", "root")], &[]), (&[], &[])] {
        let (_, log) = told(variables, arguments);
        assert!(!log.contains("ENVOY_USER"), "{log}");
    }
}

#[test]
fn every_flag_beats_its_variable_and_every_variable_the_default() {
    let namespace = Namespace::new();
    let config = |arguments: &[&str], variables: &[(&str, &str)]| -> serde_json::Value {
        let all: Vec<&str> = ["init", "--print-config", "--json"].iter().chain(arguments).copied().collect();
        let output = namespace.command(PODWEIR, &all, variables);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    use podweir::config::options::{OPTIONS, Takes};
    for spec in OPTIONS {
        use podweir::config::options::Opt;
        // Two values for each option, other than its default.
        let (one, two) = match spec.opt {
            Opt::OutboundPort | Opt::InboundPort | Opt::TunnelPort | Opt::ProbePort => ("1111", "2222"),
            Opt::Mode => ("TPROXY", "REDIRECT"),
            Opt::Established => ("reset", "leave"),
            Opt::TproxyMark | Opt::TproxyTable => ("77", "78"),
            Opt::LoopbackCidr => ("127.0.0.0/8", "127.0.0.0/16"),
            Opt::IpFamilies => ("ipv4", "both"),
            Opt::Backend => ("nftables", "iptables-nft"),
            Opt::ForceIptables => ("legacy", "nft"),
            Opt::ProbeTimeout | Opt::LockTimeout => ("3s", "4s"),
            Opt::NetworkNamespace => ("/proc/thread-self/ns/net", "/proc/self/ns/net"),
            Opt::ExcludeInterfaces | Opt::VirtualInterfaces => ("eth1", "eth2,net+"),
            Opt::OutboundRanges | Opt::OutboundRangesExclude => ("10.0.0.0/8", "192.168.0.0/16"),
            _ if spec.takes == Takes::Boolean => ("true", "false"),
            _ => ("11", "22,33"),
        };
        let key = if spec.long.is_empty() { spec.env[0] } else { spec.long };
        for name in spec.env {
            let seen = config(&[], &[(name, one)]);
            assert!(seen[key]["value"].as_str().unwrap().starts_with(one), "{name}: {}", seen[key]);
            assert_eq!(seen[key]["source"], format!("variable {name}"));
        }
        if spec.long.is_empty() {
            continue;
        }
        let mut spellings = vec![format!("--{}={two}", spec.long)];
        spellings.extend(spec.short.map(|short| format!("-{short}={two}")));
        for flag in spellings {
            let variables: Vec<(&str, &str)> = spec.env.iter().map(|name| (*name, one)).collect();
            let seen = config(&[&flag], &variables);
            assert!(seen[key]["value"].as_str().unwrap().starts_with(two), "{flag}: {}", seen[key]);
            assert_eq!(seen[key]["source"], "flag", "{flag}");
        }
    }
}

#[test]
fn what_is_no_namespace_is_not_waited_for() {
    let namespace = Namespace::new();
    let fifo = namespace.directory().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let output = namespace.podweir(&["init", "--network-namespace", fifo.to_str().unwrap()]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("is no network namespace"), "{log}");
}
