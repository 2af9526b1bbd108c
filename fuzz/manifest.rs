//! Any text is a pod's manifest or an error; so is what it asks for. Seeds: tests/data/pods.

use podweir::audit::lints::containers;
use podweir::audit::source::options::{self, KnownPod};
use podweir::cli::source::given_of_init;
use podweir::config::pod::NodeOptions;
use podweir::config::pod::manifest::{Manifest, PodOptions};
use podweir::config::settings::Face;

pub fn run(text: &str) {
    let Ok(manifest) = Manifest::parse(text) else { return };
    drop(containers::lints(&manifest, &[1337], &[1337]));
    let known = KnownPod { addresses: manifest.addresses.clone(), ..KnownPod::default() };
    match manifest.wanted(&NodeOptions::default()) {
        Ok(PodOptions::Init { arguments, variables }) => {
            if let Ok((given, face)) = given_of_init(&arguments, &variables) {
                drop(options::read(&given, face, &known));
            }
        }
        Ok(PodOptions::Annotations(given, _)) => drop(options::read(&given, Face::Init, &known)),
        Err(_) => {}
    }
}
