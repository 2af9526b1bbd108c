//! Any line is a question about a flow or an error.
//!
//!     cargo +nightly fuzz run flow

#![no_main]

use libfuzzer_sys::fuzz_target;
use podweir::audit::ask::{Defaults, Question};

fuzz_target!(|line: &[u8]| {
    let defaults = Defaults { anybody: 1000, v4: None, v6: None };
    let _ = Question::from_json(line).and_then(|question| question.flow(&defaults));
});
