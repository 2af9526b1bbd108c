//! Containers on a node: podweir's image as an init container, and servers that stand in for
//! a proxy and an app.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::cri::{
    Capabilities, ContainerConfig, ContainerId, ContainerMetadata, ContainerSecurity, ContainerStatus,
    ContainerStatusResponse, CreateContainer, EXITED, Empty, ExecSync, ExecSyncResponse, ImageSpec, Int64Value,
    LinuxContainerConfig, NamespaceOption, PID_PER_CONTAINER, RUNNING,
};
use crate::node::{BUSYBOX_IMAGE, Node, PATIENCE, PODWEIR_IMAGE, Sandbox};

/// Who a container runs as, and what it may do.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    pub user: Option<i64>,
    pub capabilities: &'static [&'static str],
}

impl Node {
    /// Creates and starts a container whose root is read-only and which cannot gain rights.
    fn container(&self, sandbox: &Sandbox, name: &str, image: &str, words: &[&str], rights: Rights) -> String {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let id = rights.user.map(|value| Int64Value { value });
        let security = ContainerSecurity {
            capabilities: Some(Capabilities { add: owned(rights.capabilities), drop: vec!["ALL".into()] }),
            namespaces: Some(NamespaceOption { pid: PID_PER_CONTAINER }),
            run_as_user: id.clone(),
            run_as_group: id,
            readonly_rootfs: true,
            no_new_privs: true,
            seccomp: Some(Empty {}),
        };
        static ATTEMPT: AtomicU32 = AtomicU32::new(0);
        let attempt = ATTEMPT.fetch_add(1, Ordering::Relaxed);
        // The arguments of the image's entry point, or of busybox, which has none.
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt }),
            image: Some(ImageSpec { image: image.into() }),
            args: owned(words),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig { security_context: Some(security) }),
            ..ContainerConfig::default()
        };
        let create = CreateContainer {
            sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let ContainerId { id } = self.must("CreateContainer", create);
        let _: Empty = self.must("StartContainer", ContainerId { id: id.clone() });
        id
    }

    /// Runs podweir's image to its end and gives the exit status and the log.
    pub fn init_container(&self, sandbox: &Sandbox, arguments: &[&str], rights: Rights) -> (i32, String) {
        let id = self.container(sandbox, "istio-init", PODWEIR_IMAGE, arguments, rights);
        let status = self.wait(&id, EXITED);
        let log = Path::new(&sandbox.config.log_directory).join("istio-init.log");
        (status.exit_code, std::fs::read_to_string(log).unwrap())
    }

    /// A container that answers on ports with its name, and can be asked to connect.
    pub fn server(&self, sandbox: &Sandbox, name: &'static str, user: i64, answers: &[(u16, &str)]) -> Container<'_> {
        let mut script = String::new();
        for (port, answer) in answers {
            script += &format!("busybox nc -ll -p {port} -e busybox echo {answer} &\n");
        }
        script += "busybox sleep 1000000";
        let rights = Rights { user: Some(user), capabilities: &[] };
        let words = ["/bin/busybox", "sh", "-c", &script];
        let server = Container { node: self, id: self.container(sandbox, name, BUSYBOX_IMAGE, &words, rights) };
        self.wait(&server.id, RUNNING);
        // It listens when every port stands in the kernel's list (state 0A).
        let begin = Instant::now();
        loop {
            let listing = server.exec(&["cat", "/proc/net/tcp", "/proc/net/tcp6"]);
            let listens =
                |port: &u16| listing.lines().any(|l| l.contains(&format!(":{port:04X} ")) && l.contains(" 0A "));
            if answers.iter().all(|(port, _)| listens(port)) {
                return server;
            }
            assert!(begin.elapsed() < PATIENCE, "{name} does not listen:\n{listing}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait(&self, container: &str, state: i32) -> ContainerStatus {
        let begin = Instant::now();
        loop {
            let answer: ContainerStatusResponse =
                self.must("ContainerStatus", ContainerId { id: container.to_owned() });
            let status = answer.status.unwrap();
            if status.state == state {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "container {container} is in state {}, not {state}", status.state);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A running container.
pub struct Container<'a> {
    node: &'a Node,
    id: String,
}

impl Container<'_> {
    /// Runs an applet of busybox in the container and gives what it printed.
    pub fn exec(&self, words: &[&str]) -> String {
        let command = ["/bin/busybox"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let request = ExecSync { container_id: self.id.clone(), command, timeout: 10 };
        let answer: ExecSyncResponse = self.node.must("ExecSync", request);
        String::from_utf8(answer.stdout).unwrap()
    }

    /// Who answers a connection from the container, as its user.
    pub fn connect_to(&self, address: &str, port: u16) -> String {
        self.exec(&["nc", "-w", "2", address, &port.to_string()]).trim().to_owned()
    }
}
