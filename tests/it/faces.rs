//! Which face a call means: a container runtime's variable and arguments exclude each other.

use crate::fixture::Namespace;

#[test]
fn a_runtimes_variable_does_not_make_arguments_count_for_nothing() {
    let namespace = Namespace::new();
    let before = namespace.everything();
    for verb in ["DEL", "VERSION", "ADD", "", "no\nverb"] {
        for arguments in [&["init"][..], &["istio-iptables", "-b", "*", "-i", "*"], &["clean"], &["--help"], &[""]] {
            let output = namespace.command(crate::fixture::PODWEIR, arguments, &[("CNI_COMMAND", verb)]);
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{verb} {arguments:?}: {log}");
            assert!(output.stdout.is_empty(), "{verb} {arguments:?}");
            assert!(log.contains("CNI_COMMAND") && log.contains("nothing was done"), "{verb} {arguments:?}: {log}");
            assert_eq!(log.lines().count(), 1, "{log}");
        }
    }
    assert_eq!(namespace.everything(), before);
    let version = namespace.command(crate::fixture::PODWEIR, &[], &[("CNI_COMMAND", "VERSION")]);
    assert!(version.status.success() && String::from_utf8_lossy(&version.stdout).contains("supportedVersions"));
}
