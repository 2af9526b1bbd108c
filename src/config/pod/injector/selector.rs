//! Label selectors, as Kubernetes writes them (`LabelSelector`, apimachinery meta/v1).

use std::collections::BTreeMap;

use serde_json::Value;

/// A label selector: conditions on labels, all of which must hold.
#[derive(Debug, Clone)]
pub(super) struct Selector(Vec<(String, Test)>);

#[derive(Debug, Clone)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// What is wrong with the selector.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let mut out = Vec::new();
        for (name, value) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let text = value.as_str().ok_or_else(|| format!("matchLabels: {name} is no text"))?;
            out.push((name.clone(), Test::In(vec![text.into()])));
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().ok_or("matchExpressions: an expression without a key")?;
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
            let test = match expression["operator"].as_str() {
                Some("In") => Test::In(values),
                Some("NotIn") => Test::NotIn(values),
                Some("Exists") => Test::Exists,
                Some("DoesNotExist") => Test::Absent,
                _ => return Err(format!("{key}: the operator is none of In, NotIn, Exists and DoesNotExist")),
            };
            out.push((key.into(), test));
        }
        Ok(Self(out))
    }

    /// Whether the selector chooses a pod. One without conditions chooses none here.
    pub(super) fn chooses(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |(name, test): &(String, Test)| match (labels.get(name), test) {
            (Some(value), Test::In(values)) => values.contains(value),
            (Some(value), Test::NotIn(values)) => !values.contains(value),
            (None, Test::NotIn(_) | Test::Absent) | (Some(_), Test::Exists) => true,
            (None, Test::In(_) | Test::Exists) | (Some(_), Test::Absent) => false,
        };
        !self.0.is_empty() && self.0.iter().all(holds)
    }
}
