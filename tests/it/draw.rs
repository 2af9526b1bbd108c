//! Drawings are the same every time, well-formed, and show where traffic escapes.

use podweir::audit::draw::{DrawingFormat, draw};
use podweir::audit::escapes;
use podweir::audit::flow::Surroundings;
use podweir::audit::ruleset::Ruleset;
use podweir::audit::space::Space;
use podweir::config::options::Opt;

use crate::escapes::ruleset;

fn drawn(ruleset: &Ruleset, format: DrawingFormat) -> String {
    let pod = Surroundings::of(vec!["10.244.0.6".parse().unwrap(), "fd00:10:244::6".parse().unwrap()]);
    let space = Space::of(&[ruleset], &pod);
    draw(ruleset, &escapes::find(ruleset, &space).unwrap(), format)
}

/// Every option that makes chains.
const MUCH: [(Opt, &str); 6] = [
    (Opt::RedirectDns, "true"),
    (Opt::Mode, "TPROXY"),
    (Opt::DropInvalid, "true"),
    (Opt::OutboundPortsExclude, "5432,3306,6379,8000-8100"),
    (Opt::OutboundRangesExclude, "10.0.0.0/8,192.168.0.0/16"),
    (Opt::ProxyUid, "1337,1338"),
];

#[test]
fn drawings_are_the_same_every_time() {
    for options in [&[][..], &MUCH] {
        for format in [DrawingFormat::Svg, DrawingFormat::Mermaid, DrawingFormat::Dot] {
            assert_eq!(drawn(&ruleset(options), format), drawn(&ruleset(options), format));
        }
    }
}

/// The texts of all elements of an SVG, and how many shapes of each class there are.
fn svg(ruleset: &Ruleset) -> (Vec<String>, impl Fn(&str) -> usize + use<>) {
    let text = drawn(ruleset, DrawingFormat::Svg);
    let document = roxmltree::Document::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let words = document.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text());
    let shapes = |n: &roxmltree::Node| !n.has_tag_name("text");
    let classes = document.descendants().filter(shapes).filter_map(|n| n.attribute("class"));
    let (words, classes): (Vec<_>, Vec<_>) = (words.map(String::from).collect(), classes.map(String::from).collect());
    (words, move |class: &str| classes.iter().filter(|known| *known == class).count())
}

#[test]
fn the_typical_pod_as_svg() {
    let (words, count) = svg(&ruleset(&[]));
    let said = |text: &str| words.iter().filter(|word| *word == text).count();
    let chains = ["nat PREROUTING", "nat OUTPUT", "nat ISTIO_INBOUND", "nat ISTIO_OUTPUT", "nat ISTIO_REDIRECT"];
    chains.iter().for_each(|chain| assert_eq!(said(chain), 1, "{chain}: {words:?}"));
    assert_eq!((said("inbound-proxy :15006"), said("outbound-proxy :15001")), (1, 1));
    // The proxy's user and group, the excluded ports, and UDP that no rule takes.
    assert_eq!((said("escapes (medium)"), count("medium")), (4, 4));
    assert_eq!((said("escapes (low)"), count("low")), (1, 1));
    assert_eq!((count("high"), count("box"), count("jump")), (0, 6, 6));
}

#[test]
fn what_is_not_intercepted_is_drawn() {
    let (words, count) = svg(&Ruleset::default());
    assert!(words.iter().any(|word| word == "no rules in OUTPUT"), "{words:?}");
    assert_eq!(count("high"), 2);
    let (words, count) = svg(&ruleset(&[(Opt::InboundPorts, "")]));
    assert!(words.iter().any(|word| word == "no rules in PREROUTING"), "{words:?}");
    assert_eq!(count("high"), 1);
    let (words, _) = svg(&ruleset(&MUCH));
    assert!(words.iter().any(|word| word == "mangle ISTIO_TPROXY") && words.iter().any(|word| word == "dropped"));
}

#[test]
fn text_drawings_name_chains_and_escapes() {
    let ruleset = ruleset(&MUCH);
    let mermaid = drawn(&ruleset, DrawingFormat::Mermaid);
    assert!(mermaid.starts_with("flowchart LR\n") && mermaid.contains("([\"nat OUTPUT\"])"), "{mermaid}");
    assert!(mermaid.contains(">\"escapes (medium)\"]:::medium"), "{mermaid}");
    let dot = drawn(&ruleset, DrawingFormat::Dot);
    assert!(dot.starts_with("digraph podweir {") && dot.ends_with("}\n"));
    assert!(dot.contains("label=\"escapes (medium)\", shape=rarrow"), "{dot}");
}
