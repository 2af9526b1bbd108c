//! Manifests of many workloads, as a chart or `kubectl get` prints them: which documents make
//! pods, which are namespaces, and which are neither. One that cannot be read is named by its
//! file and number, and does not keep the others from being read.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::sys::text::one_line;

use super::model::Pod;
use super::owner::{self, Workload};

/// The most documents that are read, items of lists included.
pub const MOST: usize = 100_000;
/// The most characters of a message about a document that cannot be read.
const LONGEST_PROBLEM: usize = 200;
/// Where workloads have their pod template: directly, or in the Job template of a `CronJob`.
const TEMPLATES: [&str; 2] = ["/spec/template", "/spec/jobTemplate/spec/template"];

/// Where a document stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DocumentPlace {
    pub file: String,
    /// The document's number in its file, from 1 on.
    pub document: usize,
    /// The line with which it begins, from 1 on.
    pub line: usize,
}

impl std::fmt::Display for DocumentPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}, document {} (line {})", self.file, self.document, self.line)
    }
}

/// A pod template, or a pod, with the workload that it belongs to.
#[derive(Debug, Clone)]
pub struct PodTemplate {
    pub workload: Workload,
    pub pod: Pod,
    /// How many pods the workload has, if that is told; 1 for a single pod.
    pub pods: u64,
    pub place: DocumentPlace,
    /// The UID, and the node, of a pod that is there; a template has neither.
    pub uid: Option<String>,
    pub node: Option<String>,
}

/// A document that cannot be read.
#[derive(Debug, Clone)]
pub struct Broken {
    pub place: DocumentPlace,
    pub problem: String,
}

/// What documents hold.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    pub templates: Vec<PodTemplate>,
    /// The labels of each namespace that is described.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// How many documents hold neither pods nor namespaces.
    pub passed_over: usize,
    pub broken: Vec<Broken>,
    count: usize,
}

/// There are more documents than are read.
#[derive(Debug, thiserror::Error)]
#[error("there are more than {MOST} documents: give fewer at a time")]
pub struct TooManyDocuments;

impl Documents {
    /// Adds the documents of a file. `namespace`: that of objects which name none.
    ///
    /// # Errors
    /// When there are more documents than are read.
    pub fn add(&mut self, file: &str, text: &str, namespace: &str) -> Result<(), TooManyDocuments> {
        for (at, (line, chunk)) in split(text).into_iter().enumerate() {
            let place = DocumentPlace { file: file.into(), document: at + 1, line };
            match parse(&chunk) {
                Ok(values) => {
                    for value in values.iter().filter(|value| !value.is_null()) {
                        self.object(value, &place, namespace, 0)?;
                    }
                }
                Err(problem) => self.refuse(place, problem)?,
            }
        }
        Ok(())
    }

    /// Adds one object that somebody parsed.
    ///
    /// # Errors
    /// When there are more documents than are read.
    pub fn add_object(&mut self, from: &str, value: &Value, namespace: &str) -> Result<(), TooManyDocuments> {
        self.object(value, &DocumentPlace { file: from.into(), document: 1, line: 1 }, namespace, 1)
    }

    /// Adds the labels of a namespace.
    pub fn add_namespace(&mut self, value: &Value) {
        self.namespaces.insert(name(value), labels(value));
    }

    fn counted(&mut self) -> Result<(), TooManyDocuments> {
        self.count += 1;
        if self.count > MOST { Err(TooManyDocuments) } else { Ok(()) }
    }

    fn refuse(&mut self, place: DocumentPlace, problem: String) -> Result<(), TooManyDocuments> {
        self.broken.push(Broken { place, problem: one_line(&problem, LONGEST_PROBLEM) });
        self.counted()
    }

    fn object(
        &mut self,
        value: &Value,
        place: &DocumentPlace,
        namespace: &str,
        depth: usize,
    ) -> Result<(), TooManyDocuments> {
        if !value.is_object() {
            return self.refuse(place.clone(), "is no object of Kubernetes: expected kind, metadata and spec".into());
        }
        if depth == 0
            && let Some(items) = value.get("items").and_then(Value::as_array)
        {
            return items.iter().try_for_each(|item| self.object(item, place, namespace, 1));
        }
        if value["kind"] == "Namespace" {
            self.add_namespace(value);
            return self.counted();
        }
        let has_pods = |template: &&Value| template.pointer("/spec/containers").is_some_and(Value::is_array);
        let is_pod = value["kind"] == "Pod" || value.get("kind").is_none();
        let template = match is_pod && has_pods(&value) {
            true => Some(value),
            false => TEMPLATES.iter().find_map(|path| value.pointer(path).filter(has_pods)),
        };
        let Some(template) = template else {
            // What should make pods and makes none is no other document.
            if ["Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"]
                .iter()
                .any(|kind| value["kind"] == *kind)
            {
                let problem = format!("{} {} has no containers", value["kind"].as_str().unwrap_or("it"), name(value));
                return self.refuse(place.clone(), problem);
            }
            self.passed_over += 1;
            return self.counted();
        };
        // A pod that has ended sends nothing any more.
        if is_pod && ["Succeeded", "Failed"].iter().any(|phase| value["status"]["phase"] == *phase) {
            self.passed_over += 1;
            return self.counted();
        }
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned).filter(|_| is_pod);
        let replicas = value.pointer("/spec/replicas").and_then(Value::as_u64);
        // What a Deployment left behind from before makes no pods.
        if replicas == Some(0) && value.pointer("/metadata/ownerReferences").is_some() {
            self.passed_over += 1;
            return self.counted();
        }
        let workload = owner::workload(value, namespace);
        match pod(template, &workload) {
            Ok(pod) => {
                let pods = if is_pod { 1 } else { replicas.unwrap_or(1) };
                let (uid, node) = (text("/metadata/uid"), text("/spec/nodeName"));
                self.templates.push(PodTemplate { workload, pod, pods, place: place.clone(), uid, node });
                self.counted()
            }
            Err(problem) => {
                self.refuse(place.clone(), format!("{workload}: the pod is not as it should be: {problem}"))
            }
        }
    }
}

/// The pod of a template, under the name of its workload where it has none.
fn pod(template: &Value, workload: &Workload) -> Result<Pod, String> {
    let mut template = template.clone();
    if let Some(fields) = template.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let mut pod: Pod = serde_json::from_value(template).map_err(|e| e.to_string())?;
    pod.metadata.name.get_or_insert_with(|| workload.name.clone());
    pod.metadata.namespace.get_or_insert_with(|| workload.namespace.clone());
    Ok(pod)
}

fn name(value: &Value) -> String {
    value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("-").into()
}

fn labels(value: &Value) -> BTreeMap<String, String> {
    let all = value.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// The documents of a text, with the line each begins in. A line that begins with three
/// hyphens is a marker wherever it stands (YAML 1.2, 9.1.2: `c-forbidden`), so that one
/// document that is no YAML leaves the others as they are.
fn split(text: &str) -> Vec<(usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    let (mut begin, mut chunk) = (1, String::new());
    for (at, line) in text.lines().enumerate() {
        let rest = line.strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match rest {
            Some(rest) => {
                out.push((begin, std::mem::take(&mut chunk)));
                begin = at + 1 + usize::from(rest.trim().is_empty());
                chunk.push_str(rest);
            }
            None if line.trim_end() == "..." => {}
            None => chunk.push_str(line),
        }
        chunk.push('\n');
    }
    out.push((begin, chunk));
    // What stands between markers may be nothing, comments, or a directive of the next one.
    let is_empty = |line: &str| line.trim().is_empty() || line.starts_with(['#', '%']) || line.trim().starts_with('#');
    out.retain(|(_, chunk)| !chunk.lines().all(is_empty));
    out
}

/// A value of YAML, in which `n` and `y` are names, as they are to Kubernetes.
fn yaml(text: &str) -> Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

/// What a document holds: one value of YAML, or as many of JSON as there are.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.trim_start().starts_with('{') {
        let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
        match values {
            Ok(values) => return Ok(values),
            // A flow mapping of YAML begins as an object of JSON does.
            Err(json) => {
                return serde_saphyr::from_str(text)
                    .map(|value| vec![value])
                    .map_err(|_| format!("is no JSON: {json}"));
            }
        }
    }
    yaml(text).map(|value| vec![value]).map_err(|e| {
        let text = e.to_string();
        format!("is no YAML: {}", text.lines().next().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Documents {
        let mut out = Documents::default();
        out.add("f.yaml", text, "default").unwrap();
        out
    }

    #[test]
    fn a_broken_document_is_named_and_the_others_are_read() {
        let pod = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app}]}\n";
        let found = read(&format!(
            "# a comment\n---\n{pod}---\nkind: [\n---\nkind: Service\nmetadata: {{name: s}}\n--- # of b\n{pod}---\n- 1\n"
        ));
        assert_eq!((found.templates.len(), found.passed_over), (2, 1));
        let broken: Vec<_> = found.broken.iter().map(|broken| (broken.place.document, broken.place.line)).collect();
        assert_eq!(broken, [(2, 7), (5, 16)], "{:?}", found.broken);
        assert_eq!(found.templates[1].place.line, 11);
    }

    #[test]
    fn every_kind_of_workload_and_lists_of_them() {
        let template = "template: {metadata: {labels: {app: x}}, spec: {containers: [{name: app}]}}";
        let text = format!(
            "kind: List\nitems:\n- {{kind: Deployment, metadata: {{name: d, namespace: n}}, spec: {{replicas: 3, {template}}}}}\n\
             - {{kind: CronJob, metadata: {{name: c}}, spec: {{jobTemplate: {{spec: {{{template}}}}}}}}}\n\
             - {{kind: Namespace, metadata: {{name: n, labels: {{istio-injection: enabled}}}}}}\n\
             - {{kind: ReplicaSet, metadata: {{name: d-1, ownerReferences: []}}, spec: {{replicas: 0, {template}}}}}\n\
             - {{kind: Deployment, metadata: {{name: e}}, spec: {{}}}}\n"
        );
        let found = read(&text);
        let names: Vec<_> = found.templates.iter().map(|t| (t.workload.to_string(), t.pods)).collect();
        assert_eq!(names, [("Deployment n/d".into(), 3), ("CronJob default/c".into(), 1)]);
        assert_eq!(found.namespaces["n"]["istio-injection"], "enabled");
        assert_eq!((found.passed_over, found.broken.len()), (1, 1));
        assert_eq!(found.templates[0].pod.labels()["app"], "x");
    }

    #[test]
    fn json_documents_stand_one_after_the_other() {
        let pod = r#"{"kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"app"}]}}"#;
        assert_eq!(read(&format!("{pod}\n{pod}")).templates.len(), 2);
        assert!(read("{\"kind\": ").broken[0].problem.starts_with("is no JSON"), "{:?}", read("{\"kind\": ").broken);
    }

    #[test]
    fn annotations_that_are_no_text_are_refused_as_the_api_server_does() {
        let found = read("kind: Pod\nmetadata: {name: a, annotations: {b: 1}}\nspec: {containers: [{name: app}]}\n");
        assert!(found.broken[0].problem.contains("Pod default/a"), "{:?}", found.broken);
    }
}
