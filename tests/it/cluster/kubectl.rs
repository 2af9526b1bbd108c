//! Asking and telling the cluster, as a person does.

use serde_json::Value;

use super::Cluster;

/// A Kubernetes namespace of a test's own; what is in it goes with it.
pub struct Project<'a> {
    pub cluster: &'a Cluster,
    pub name: &'static str,
}

impl Cluster {
    /// Runs a program on the node and gives what it printed, or what went wrong.
    pub fn output(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
        let output = self.machine().run(program, arguments, input);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        match output.status.success() {
            true => Ok(text(output.stdout)),
            false => Err(format!("{program} {}: {}{}", arguments.join(" "), text(output.stdout), text(output.stderr))),
        }
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.output("kubectl", &[&["--request-timeout=10s"], arguments].concat(), "")
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|e| panic!("{e}"))
    }

    /// One object, or a list of them.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// Creates or changes objects.
    pub fn apply(&self, object: &Value) {
        self.output("kubectl", &["apply", "-f", "-"], &object.to_string()).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The condition of the node that is called Ready, whole.
    pub fn node_ready(&self) -> Value {
        let node = self.get(&["node", "node1"]);
        let conditions = node["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "Ready").unwrap().clone()
    }

    /// When the node's lease was renewed last: it is alive.
    pub fn lease(&self) -> String {
        self.kubectl(&["-n", "kube-node-lease", "get", "lease", "node1", "-o", "jsonpath={.spec.renewTime}"])
    }

    /// What an account asked the API server for, each as verb and address.
    pub fn requests_of(&self, account: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.machine().folder().join("audit.log")).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of = events.filter(|event| event["user"]["username"] == account);
        of.map(|event| format!("{} {}", event["verb"].as_str().unwrap(), event["requestURI"].as_str().unwrap()))
            .collect()
    }

    /// A namespace for a test.
    pub fn project(&self, name: &'static str) -> Project<'_> {
        self.kubectl(&["create", "namespace", name]);
        let account = ["-n", name, "get", "serviceaccount", "default"];
        self.wait("the namespace's account", || self.try_kubectl(&account).ok()).unwrap();
        Project { cluster: self, name }
    }
}

impl Project<'_> {
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", self.name], arguments].concat())
    }

    pub fn get(&self, arguments: &[&str]) -> Value {
        self.cluster.get(&[&["-n", self.name], arguments].concat())
    }

    /// Creates an object in the namespace.
    pub fn apply(&self, mut object: Value) {
        object["metadata"]["namespace"] = self.name.into();
        self.cluster.apply(&object);
    }

    /// What was told of an object in its events.
    pub fn events(&self, name: &str) -> Vec<String> {
        let selector = format!("involvedObject.name={name}");
        let events = self.get(&["events", "--field-selector", &selector]);
        let text = |event: &Value| {
            format!(
                "{}: {}",
                event["reason"].as_str().unwrap_or_default(),
                event["message"].as_str().unwrap_or_default()
            )
        };
        events["items"].as_array().unwrap().iter().map(text).collect()
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.try_kubectl(&["delete", "namespace", self.name, "--wait=false"]);
    }
}
