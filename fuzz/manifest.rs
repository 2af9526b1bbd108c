//! Any text is a pod's manifest or an error; so is what it asks for. Seeds: tests/data/pods.

use podweir::audit::manifest::{Manifest, Wanted};
use podweir::audit::source::options::{self, Known};
use podweir::cli::source::of_words_in;
use podweir::cni::NodeOptions;
use podweir::config::settings::Face;

pub fn run(text: &str) {
    let Ok(manifest) = Manifest::parse(text) else { return };
    drop(manifest.lints(&[1337], &[1337]));
    let known = Known { addresses: manifest.addresses.clone(), ..Known::default() };
    match manifest.wanted(&NodeOptions::default()) {
        Ok(Wanted::Init { arguments, variables }) => {
            let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
            drop(of_words_in("istio-init", &words, None, &known, &|name| variables.get(name).cloned()));
        }
        Ok(Wanted::Annotations(given, _)) => drop(options::read(&given, Face::Init, &known)),
        Err(_) => {}
    }
}
