//! The image that stands for everybody else's programs, and for the pause container.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::archive;
use crate::fixture::program;

/// Where the program is.
pub fn path() -> PathBuf {
    program("busybox").expect("busybox not found: run ./scripts/packages busybox-static")
}

/// An image of one program, which sleeps if nothing else is asked of it.
pub fn image(folder: &Path, name: &str) -> PathBuf {
    let config = json!({ "Cmd": ["/bin/busybox", "sleep", "1000000"], "Env": ["PATH=/bin"] });
    archive::image(folder, name, &[("bin/busybox", &path())], config)
}
