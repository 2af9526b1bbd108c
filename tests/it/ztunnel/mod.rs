//! Ambient mode with a real ztunnel: found by `PODWEIR_ZTUNNEL`, which names the program, a
//! folder that has `ztunnel` or `ztunnel.xz`, or such an archive. It has to be built with a
//! certificate authority of its own (`--features testing`), since there is no control plane.

pub mod place;
mod traffic;
mod upgrade;
