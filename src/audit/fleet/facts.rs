//! What agents told of the kernels of their nodes, by pod. Rules that many pods have are kept
//! once, for all nodes together: memory follows what is distinct, not what there is.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::audit::schema;
use crate::audit::source::Source;

use super::Missed;

/// What the member `format` of the first line says.
pub const FORMAT: &str = "podweir-node-facts";
/// The version that agents write, and the only one that is read.
pub const VERSION: u64 = 1;

/// What an agent reports of a pod.
#[derive(Debug, Clone)]
pub struct Fact {
    /// The agent's word for the pod's state.
    pub state: String,
    pub why: Option<String>,
    /// Whether the pod's rules differ from what they should be, and traffic escapes by that.
    pub escapes: bool,
    /// The index of the pod's rules among the distinct ones.
    pub rules: Option<usize>,
}

/// What all agents told.
#[derive(Debug, Default)]
pub struct ClusterFacts {
    pods: HashMap<String, Fact>,
    known: HashMap<String, usize>,
    sources: Vec<Source>,
    pub nodes: usize,
    pub missed: Vec<Missed>,
}

/// One agent's report while it is read, line by line.
#[derive(Debug, Default)]
pub struct Telling {
    node: Option<String>,
    pods: u64,
}

#[derive(Deserialize)]
struct Line {
    format: Option<String>,
    version: Option<u64>,
    podweir: Option<String>,
    node: Option<String>,
    rules: Option<String>,
    source: Option<Value>,
    pod: Option<String>,
    #[serde(default)]
    state: String,
    why: Option<String>,
    #[serde(default)]
    escapes: bool,
    end: Option<End>,
}

#[derive(Deserialize)]
struct End {
    pods: u64,
}

impl Telling {
    /// Whether the report has ended, or has not begun.
    pub fn is_over(&self) -> bool {
        self.node.is_none()
    }
}

impl ClusterFacts {
    /// What was told of a pod, by its UID.
    pub fn of(&self, uid: &str) -> Option<&Fact> {
        self.pods.get(uid)
    }

    /// The distinct rules with this index.
    pub fn source(&self, number: usize) -> Option<&Source> {
        self.sources.get(number)
    }

    /// How many pods were told of.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Reads a line of an agent's report.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn line(&mut self, telling: &mut Telling, text: &str) -> Result<(), String> {
        let line: Line = serde_json::from_str(text).map_err(|e| format!("a line is none of an agent's: {e}"))?;
        if let Some(format) = &line.format {
            if format != FORMAT {
                return Err(format!("its format is not '{FORMAT}'"));
            }
            if line.version != Some(VERSION) {
                let version = line.version.map_or("none".into(), |version| version.to_string());
                let release = line.podweir.as_deref().unwrap_or("another release");
                return Err(format!(
                    "its agent is of podweir {release} and tells facts of version {version}, of which this one reads {VERSION}: use a podweir of the agents' release"
                ));
            }
            telling.node = Some(line.node.unwrap_or_default());
            telling.pods = 0;
            return Ok(());
        }
        if telling.is_over() {
            return Err("its first line does not say what it is".into());
        }
        if let Some(End { pods }) = line.end {
            telling.node = None;
            self.nodes += 1;
            return match pods == telling.pods {
                true => Ok(()),
                false => Err(format!("it told of {} pods, and says that it told of {pods}", telling.pods)),
            };
        }
        if let Some(uid) = line.pod {
            let rules = line.rules.map(|key| self.known.get(&key).copied().ok_or(()));
            let rules = rules.transpose().map_err(|()| "it names rules that it did not tell".to_owned())?;
            telling.pods += 1;
            self.pods.insert(uid, Fact { state: line.state, why: line.why, escapes: line.escapes, rules });
            return Ok(());
        }
        match (line.rules, line.source) {
            (Some(key), Some(source)) => {
                if !self.known.contains_key(&key) {
                    let source = schema::read(&source).map_err(|e| format!("rules that it told of: {e}"))?;
                    self.known.insert(key, self.sources.len());
                    self.sources.push(source);
                }
                Ok(())
            }
            // A line of a later release.
            _ => Ok(()),
        }
    }

    /// Takes what several agents told, one after the other.
    pub fn text(&mut self, name: &str, text: &str) {
        let mut telling = Telling::default();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            if let Err(why) = self.line(&mut telling, line) {
                self.missed.push(Missed { what: format!("{name}, line {}", at + 1), why });
                return;
            }
        }
        if let Some(node) = telling.node {
            let why = "the answer ends before its last line".into();
            self.missed.push(Missed { what: format!("{name}: node {node}"), why });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"format":"podweir-node-facts","version":1,"podweir":"0.1.0","node":"n1"}"#;

    fn missed(text: &str) -> String {
        let mut facts = ClusterFacts::default();
        facts.text("f", text);
        facts.missed.first().map(|missed| format!("{}: {}", missed.what, missed.why)).unwrap_or_default()
    }

    #[test]
    fn an_answer_that_is_none_is_told_by_what_is_wrong_with_it() {
        let pod =
            r#"{"pod":"u","namespace":"a","name":"b","state":"intercepted","why":null,"escapes":false,"rules":null}"#;
        assert_eq!(missed(&format!("{HEAD}\n{pod}\n{{\"end\":{{\"pods\":1}}}}\n")), "");
        for (text, problem) in [
            (format!("{HEAD}\n{pod}\n"), "f: node n1: the answer ends before its last line"),
            (format!("{HEAD}\n{{\"end\":{{\"pods\":1}}}}"), "it told of 0 pods"),
            (HEAD.replace("\"version\":1", "\"version\":2"), "podweir 0.1.0 and tells facts of version 2"),
            (pod.to_owned(), "its first line does not say what it is"),
            (
                format!("{HEAD}\n{}", pod.replace("\"rules\":null", "\"rules\":\"x\"")),
                "names rules that it did not tell",
            ),
            ("error: unknown".into(), "a line is none of an agent's"),
            (format!("{HEAD}\n{{\"rules\":\"x\",\"source\":{{}}}}"), "rules that it told of"),
        ] {
            assert!(missed(&text).contains(problem), "{}", missed(&text));
        }
        // What a later release adds is passed over.
        assert_eq!(missed(&format!("{HEAD}\n{{\"weather\":1}}\n{{\"end\":{{\"pods\":0}}}}")), "");
    }
}
