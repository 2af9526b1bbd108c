//! Any bytes are a dump or an error. Seeds: tests/data/dumps.

use podweir::audit::source::dump::{self, Text};

pub fn run(bytes: &[u8]) {
    let text = Text { name: "fuzz".into(), bytes: bytes.to_vec(), family: None };
    if let Ok(source) = dump::read(&[text]) {
        // What was read can be written, and reads back as the same.
        let written = podweir::audit::schema::source(&source).to_string();
        let again = Text { name: "again".into(), bytes: written.into_bytes(), family: None };
        let again = dump::read(&[again]).expect("our own JSON");
        assert_eq!(again.canon(), source.canon());
    }
}
