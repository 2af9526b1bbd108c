//! Any line is a question about a flow or an error, and a question has an answer. Seeds:
//! tests/data/flows.

use podweir::audit::explain::{NoTrace, explain};
use podweir::audit::question::{Defaults, Question};
use podweir::audit::source::options::{self, KnownPod};
use podweir::config::given::Given;
use podweir::config::settings::Face;

pub fn run(line: &[u8]) {
    let Ok(question) = Question::from_json(line) else { return };
    let known = KnownPod { addresses: vec!["10.244.0.6".parse().expect("an address")], ..KnownPod::default() };
    let source = options::read(&Given::default(), Face::Init, &known).expect("defaults");
    if let Ok(flow) = question.flow(&Defaults::of(&source.ruleset, &source.pod)) {
        let _ = explain(&source.ruleset, &source.pod, &flow, &mut NoTrace);
    }
}
