//! Any bytes are a node's CNI configuration or an error that can be shown. Seeds: cni-conf.

use podweir::cni::node_options;

pub fn run(bytes: &[u8]) {
    if let Err(error) = node_options(bytes) {
        assert!(!error.to_string().is_empty());
    }
}
