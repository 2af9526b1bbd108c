//! Which workload a pod belongs to: the object that a person wrote, not those that
//! controllers made of it. A ReplicaSet is its Deployment's, a Job its CronJob's.

use std::fmt;

use serde_json::Value;

/// An object that makes pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    pub namespace: String,
    pub kind: String,
    pub name: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Labels that a controller puts on a ReplicaSet and its pods: their value ends the
/// ReplicaSet's name, and what is in front of it is the name of the object that made it.
const HASHES: [(&str, &str); 2] = [("rollouts-pod-template-hash", "Rollout"), ("pod-template-hash", "Deployment")];

/// The fewest digits with which a CronJob ends the name of a Job: minutes since 1970.
const FEWEST_DIGITS: usize = 8;

fn text<'a>(value: &'a Value, path: &str) -> Option<&'a str> {
    value.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The workload of an object: its controller, or the object itself. `namespace`: that of an object which
/// names none.
pub fn workload(object: &Value, namespace: &str) -> Workload {
    let own = |kind: &str, name: &str| Workload {
        namespace: text(object, "/metadata/namespace").unwrap_or(namespace).into(),
        kind: kind.into(),
        name: name.into(),
    };
    let kind = text(object, "/kind").unwrap_or("Pod");
    // A pod that is made by a controller has just the beginning of a name.
    let name = text(object, "/metadata/name").or_else(|| text(object, "/metadata/generateName")).unwrap_or("-");
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let mut owners = owners.filter(|owner| owner["controller"] == true);
    let (kind, name) = match owners.next().map(|owner| (text(owner, "/kind"), text(owner, "/name"))) {
        // A static pod is its node's, which makes no other.
        Some((Some("Node"), _)) | None => (kind, name),
        Some((Some(kind), Some(name))) => (kind, name),
        Some(_) => (kind, name),
    };
    match kind {
        "ReplicaSet" => {
            let made = HASHES.iter().find_map(|(label, kind)| {
                let hash = object.pointer("/metadata/labels")?.get(label)?.as_str()?;
                Some((kind, name.strip_suffix(hash)?.strip_suffix('-')?))
            });
            made.map_or_else(|| own(kind, name), |(kind, name)| own(kind, name))
        }
        "Job" => match name.rsplit_once('-') {
            Some((made, digits))
                if digits.len() >= FEWEST_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                own("CronJob", made)
            }
            _ => own(kind, name),
        },
        _ => own(kind, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_what_a_person_wrote() {
        let of = |kind: &str, name: &str, labels: Value| {
            let object = json!({ "kind": "Pod", "metadata": { "name": "p", "namespace": "shop", "labels": labels,
                "ownerReferences": [{ "kind": "Other", "name": "x" }, { "kind": kind, "name": name, "controller": true }] } });
            workload(&object, "default").to_string()
        };
        assert_eq!(of("ReplicaSet", "web-5d4f8c", json!({ "pod-template-hash": "5d4f8c" })), "Deployment shop/web");
        assert_eq!(of("ReplicaSet", "web-5d4f8c", json!({})), "ReplicaSet shop/web-5d4f8c");
        assert_eq!(of("ReplicaSet", "web-7", json!({ "rollouts-pod-template-hash": "7" })), "Rollout shop/web");
        assert_eq!(of("Job", "tidy-28123456", json!({})), "CronJob shop/tidy");
        assert_eq!(of("Job", "once-2", json!({})), "Job shop/once-2");
        assert_eq!(of("StatefulSet", "db", json!({})), "StatefulSet shop/db");
        assert_eq!(of("Node", "n1", json!({})), "Pod shop/p");
        assert_eq!(workload(&json!({ "metadata": { "generateName": "a-" } }), "default").to_string(), "Pod default/a-");
    }
}
