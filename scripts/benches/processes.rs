//! Whole processes in fresh namespaces, interleaved with what they are compared against.

use std::process::Command;

use crate::median;
use crate::namespace::{fresh, run};
use crate::typical::TYPICAL;

const RUNS: usize = 200;

struct Case<'a> {
    name: &'a str,
    command: Vec<&'a str>,
    input: &'a str,
    /// Run first in the same namespace, not measured.
    before: bool,
    /// Which case the ratio is to, and how much it may be.
    against: Option<(&'a str, f64)>,
}

pub fn measure(podweir: &str) {
    let dry = |face: &[&str], options: &[&str]| {
        let dry_run = ["--dry-run", "--ip-families", "ipv4"];
        let output = Command::new(podweir).args(face).args(options).args(dry_run).output().expect("dry run");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    };
    let with = |face: &[&'static str]| -> Vec<&str> { [&[podweir], face, TYPICAL].concat() };
    let native = with(&["init"]);
    let legacy = with(&["istio-iptables", "--force-iptables-binary", "legacy"]);
    let nft = with(&["istio-iptables", "--force-iptables-binary", "nft"]);
    // On a first installation there is nothing to remove; nft would wait for the kernel to.
    let without_delete = |script: String| -> String {
        script.lines().filter(|l| !l.starts_with("delete table")).map(|l| format!("{l}\n")).collect()
    };
    let ruleset = without_delete(dry(&["init"], TYPICAL));
    let restore = dry(&["istio-iptables", "--force-iptables-binary", "legacy"], TYPICAL);
    let ranges: Vec<String> = (0..5000).map(|n| format!("100.{}.{}.0/25", 64 + n / 200, n % 200)).collect();
    let ranges = ranges.join(",");
    let many = ["-b", "*", "-i", "*", "-x", &ranges];
    let many_ruleset = without_delete(dry(&["init"], &many));
    let (nft_f, legacy_restore, nft_restore) =
        ("nft -f, same rules", "iptables-legacy-restore, same rules", "iptables-nft-restore, same rules");
    let case = |name, command: Vec<_>, against| Case { name, command, input: "", before: false, against };
    let cases = [
        case("/bin/true", vec!["/bin/true"], None),
        Case { input: &ruleset, ..case(nft_f, vec!["nft", "-f", "-"], None) },
        case("podweir native, first install", native.clone(), Some((nft_f, 0.5))),
        Case { before: true, ..case("podweir native, nothing to change", native, Some((nft_f, 0.5))) },
        Case { input: &restore, ..case(legacy_restore, vec!["iptables-legacy-restore", "--noflush"], None) },
        case("podweir iptables-legacy, first install", legacy.clone(), Some((legacy_restore, 1.5))),
        Case {
            before: true,
            ..case("podweir iptables-legacy, nothing to change", legacy, Some((legacy_restore, 1.5)))
        },
        Case { input: &restore, ..case(nft_restore, vec!["iptables-nft-restore", "--noflush"], None) },
        case("podweir iptables-nft, first install", nft, Some((nft_restore, 1.5))),
        Case { input: &many_ruleset, ..case("nft -f, 5,000 excluded ranges", vec!["nft", "-f", "-"], None) },
        case("podweir native, 5,000 excluded ranges", [&[podweir, "init"][..], &many].concat(), None),
    ];
    let mut times = vec![Vec::new(); cases.len()];
    let mut memory = vec![0; cases.len()];
    for _ in 0..RUNS {
        for (at, case) in cases.iter().enumerate() {
            let namespace = fresh();
            if case.before {
                run(&namespace, &case.command, "");
            }
            let (took, rss) = run(&namespace, &case.command, case.input);
            times[at].push(took.as_secs_f64() * 1e3);
            memory[at] = memory[at].max(rss);
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    println!("| medians of {RUNS} runs, one IPv4 address | ms | ratio | at most | peak RSS, MB |");
    println!("|---|---:|---:|---:|---:|");
    for (at, case) in cases.iter().enumerate() {
        let against = case.against.and_then(|(name, limit)| {
            let other = cases.iter().position(|c| c.name == name)?;
            Some((format!("{:.2}", medians[at] / medians[other]), format!("{limit} × {name}")))
        });
        let (ratio, limit) = against.unwrap_or_default();
        println!("| {} | {:.2} | {ratio} | {limit} | {:.1} |", case.name, medians[at], memory[at] as f64 / 1024.0);
    }
    let size = std::fs::metadata(podweir).expect("the binary").len();
    println!("\nThe binary: {:.2} MB.", size as f64 / 1e6);
}
