//! Random bytes for everything that reads what somebody else wrote. `PODWEIR_FUZZ` names
//! what reads them; the arguments are libFuzzer's. scripts/fuzz runs all of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is what it looks for")]
#![no_main]

mod accept;
mod audit;
mod dump;
mod flow;
mod manifest;
mod netconf;

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};

type Target = fn(&[u8]);

/// What the process was asked for.
static TARGET: OnceLock<Target> = OnceLock::new();

/// Whether a text is worth keeping: bytes that are none tell a reader of text nothing new.
fn of_text(bytes: &[u8], run: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        run(text);
    }
}

fn target() -> Target {
    match std::env::var("PODWEIR_FUZZ").as_deref() {
        Ok("accept") => |bytes| of_text(bytes, accept::run),
        Ok("audit") => audit::run,
        Ok("dump") => dump::run,
        Ok("flow") => flow::run,
        Ok("manifest") => |bytes| of_text(bytes, manifest::run),
        Ok("netconf") => netconf::run,
        other => panic!("PODWEIR_FUZZ names accept, audit, dump, flow, manifest or netconf, not {other:?}"),
    }
}

fuzz_target!(init: TARGET.set(target()).expect("once"), |bytes: &[u8]| -> Corpus {
    TARGET.get().expect("set before the first call")(bytes);
    Corpus::Keep
});
