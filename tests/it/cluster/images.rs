//! Images for the cluster, made from files and brought in without a registry.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Cluster;
use crate::fixture::PODWEIR;
use crate::{busybox, image};

/// The image of somebody else's programs, also that of a pod's first container.
pub const BUSYBOX: &str = "localhost/busybox:test";
/// The project's own, as `scripts/image` makes it.
pub const PODWEIR_IMAGE: &str = "localhost/podweir:test";

impl Cluster {
    /// podweir without what debuggers want of it, as it is released: a third of the size.
    pub fn program(&self) -> PathBuf {
        self.machine().folder().join("podweir")
    }

    /// Brings an archive in, as `scripts/image`, `docker save` and `archive::image` make them.
    pub fn load(&self, archive: &Path) -> Result<(), String> {
        let import = ["-n", "k8s.io", "images", "import", "--digests=false", archive.to_str().unwrap()];
        self.output("ctr", &import, "").map(drop)
    }
}

/// The images that every test may use.
pub fn load_own(cluster: &Cluster) -> Result<(), String> {
    cluster.wait("containerd", || cluster.output("ctr", &["version"], "").ok())?;
    let folder = cluster.machine().folder();
    let strip = Command::new("strip").arg("-o").arg(cluster.program()).arg(PODWEIR).status();
    assert!(strip.is_ok_and(|status| status.success()), "strip {PODWEIR}");
    let archive = folder.join("podweir.tar");
    image::build(&cluster.program(), &archive, PODWEIR_IMAGE);
    cluster.load(&archive)?;
    cluster.load(&busybox::image(&folder.join("busybox"), BUSYBOX))
}
