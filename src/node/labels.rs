//! Labels of metrics.

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

/// Labels as pairs of fixed words.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels(pub Vec<(&'static str, String)>);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// The labels of a metric, by name.
pub(super) fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    Labels(pairs.into_iter().map(|(name, value)| (name, value.to_owned())).collect())
}
