//! Any bytes are a node's CNI configuration or an error that can be shown. Seeds: cni-conf.

use podweir::cni::NodeOptions;

pub fn run(bytes: &[u8]) {
    if let Err(error) = NodeOptions::of_file(bytes) {
        assert!(!error.to_string().is_empty());
    }
}
