//! What the kernel has in the namespaces of this node's pods, for somebody who looks at a
//! whole cluster: lines of JSON, in which rules that many pods have stand once.
//!
//! ```text
//! {"format":"podweir-node-facts","version":1,"podweir":"0.1.0","node":"node1"}
//! {"rules":"sha256:…","source":{ as podweir render --format json writes them, without what differs from pod to pod }}
//! {"pod":"UID","namespace":"shop","name":"web-0","state":"intercepted","why":null,"escapes":false,"rules":"sha256:…"}
//! {"end":{"pods":1}}
//! ```
//!
//! `rules` of a pod is null where its namespace cannot be looked into; `why` then says so.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::audit::fleet::facts::{FORMAT, VERSION};
use crate::audit::fleet::shapes::{V4, V6};
use crate::audit::flow::Surroundings;
use crate::audit::schema;
use crate::audit::source::{Source, live};
use crate::backend::iptables::programs::{NO_LOCK, ProgramEnvironment};
use crate::backend::limit::Most;
use crate::config::facts::{families_of, is_link_local_v6};
use crate::config::given::process_environment;
use crate::sys::netns::Netns;

use super::processes;

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Stands for the link-local addresses of all pods alike.
const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2));

/// Writes the facts of every pod in the agent's answers, line by line. `proc`: where the node's proc(5)
/// is mounted.
///
/// # Errors
///
/// What `line` fails with.
pub fn tell<E>(
    status: &Value,
    list: &Value,
    proc: &Path,
    mut line: impl FnMut(&Value) -> Result<(), E>,
) -> Result<(), E> {
    line(&json!({
        "format": FORMAT,
        "version": VERSION,
        "podweir": env!("CARGO_PKG_VERSION"),
        "node": status["node"],
    }))?;
    let namespaces = processes::namespaces(proc);
    let mut told = HashSet::new();
    let mut pods = 0;
    for row in list["pods"].as_array().into_iter().flatten() {
        let uid = row[3].as_str().unwrap_or_default();
        let found = match namespaces.get(uid) {
            Some(path) => read(path).map(normal),
            None => Err("none of its processes is running".into()),
        };
        let (key, problem) = match found {
            Ok(source) => {
                let key = digest(&source);
                if told.insert(key.clone()) {
                    line(&json!({ "rules": key, "source": source }))?;
                }
                (Some(key), None)
            }
            Err(problem) => (None, Some(problem)),
        };
        line(&json!({
            "pod": uid,
            "namespace": row[0],
            "name": row[1],
            "state": row[2],
            "why": problem.map_or_else(|| row[4].clone(), Value::from),
            "escapes": row[5] == true,
            "rules": key,
        }))?;
        pods += 1;
    }
    line(&json!({ "end": { "pods": pods } }))
}

/// All rules of a namespace, read on a thread of its own that ends there.
fn read(path: &Path) -> Result<Source, String> {
    let netns = Netns::open(path).map_err(|e| e.to_string())?;
    let owner = netns.foreign_owner().map_err(|e| e.to_string())?.map(Arc::new);
    let resolv_conf = netns.identity().and_then(|identity| processes::resolv_conf(path, identity)).ok();
    let programs = ProgramEnvironment {
        path: process_environment("PATH").unwrap_or_default().into(),
        variables: [("XTABLES_LOCKFILE", NO_LOCK.into())].into(),
        user_namespace: owner,
        ..ProgramEnvironment::default()
    };
    let live = live::Live {
        programs,
        lock_timeout: LOCK_TIMEOUT,
        resolv_conf: resolv_conf.as_deref(),
        most: Most::TO_UNDERSTAND,
    };
    let look = || {
        netns.enter().map_err(|e| e.to_string())?;
        live::read(&live).map_err(|e| e.to_string())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pod".into()).spawn_scoped(scope, look);
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        thread.join().map_err(|_| "the thread ended without an answer".to_owned())?
    })
}

/// A pod's rules as JSON, without what differs from pod to pod and changes no finding: addresses,
/// counters, handles.
fn normal(mut source: Source) -> Value {
    let families = families_of(&source.pod.addresses);
    let mut addresses: Vec<IpAddr> = Vec::new();
    addresses.extend(families.v4.then_some(V4));
    addresses.extend(families.v6.then_some(V6));
    addresses.extend(source.pod.addresses.iter().any(is_link_local_v6).then_some(LINK_LOCAL));
    source.pod = Surroundings {
        dns_servers: source.pod.dns_servers.take(),
        uplink: std::mem::take(&mut source.pod.uplink),
        ..Surroundings::of(addresses)
    };
    let mut value = schema::source(&source);
    blank(&mut value);
    value
}

fn blank(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                match name.as_str() {
                    "counters" | "handle" => *member = Value::Null,
                    _ => blank(member),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        _ => {}
    }
}

fn digest(value: &Value) -> String {
    let hash = Sha256::digest(value.to_string().as_bytes());
    hash.iter().fold(String::from("sha256:"), |mut out, byte| {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}
