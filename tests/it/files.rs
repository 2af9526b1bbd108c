//! Files that go away with the test that wrote them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct File(PathBuf);

impl File {
    /// A file of a name that no other has, which ends as `name` does.
    pub fn new(name: &str, text: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("podweir-test-{}-{number}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
