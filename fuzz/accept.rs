//! Any text is an `--accept` file or an error, and what it accepts can be taken out of a
//! report. Seeds: tests/data/accept.

use jiff::civil::date;
use podweir::audit::accept::Accepted;
use podweir::audit::report::{Input, Report, text};
use podweir::audit::source::options::{self, KnownPod};
use podweir::audit::space::Space;
use podweir::config::given::Given;
use podweir::config::settings::Face;

pub fn run(bytes: &str) {
    let Ok(accepted) = Accepted::parse(bytes) else { return };
    let known = KnownPod { addresses: vec!["10.244.0.6".parse().expect("an address")], ..KnownPod::default() };
    let source = options::read(&Given::default(), Face::Init, &known).expect("defaults");
    let space = Space::telling_apart(&[&source.ruleset], &source.pod, &accepted.interfaces());
    let input = Input {
        about: "fuzz".into(),
        file: None,
        source: &source,
        wanted: None,
        manifest: None,
        proxy_user: None,
        established: None,
        explain: None,
        accepted: &accepted,
        today: date(2026, 1, 1),
    };
    if let Ok(report) = Report::new(input, &space) {
        assert!(!text::write(&report).is_empty());
    }
}
