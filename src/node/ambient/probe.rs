//! A synthetic probe at the start: whether packets from the address of probes reach the node's pods.
//! Network plugins that drop them, or rewrite their source, make the kubelet's probes fail where plain
//! text is refused.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::ambient::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use crate::config::types::{Families, Family};

use super::real::Real;
use super::{Ambient, Probed};

/// How long a probe may take, and the pauses between two of them, the first and the longest, until one
/// arrives as it should.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// The probe arrived from the address of probes.
    Arrived,
    /// The probe arrived from another address.
    From(IpAddr),
    /// The probe did not arrive, and why.
    Lost(String),
    /// No probe could be made, and why.
    NotMade(String),
}

impl Seen {
    /// The finding in a sentence, with what helps.
    pub(super) fn sentence(&self, to: IpAddr) -> String {
        let source = source(to);
        match self {
            Self::Arrived => format!("a probe of {to} arrives from {source}, as it should"),
            Self::From(other) => format!(
                "a probe of {to} arrives from {other}, and not from {source}: something on the node rewrites the source of what it sends to its pods after podweir did; where policies refuse plain text, the kubelet's probes fail"
            ),
            Self::NotMade(problem) => format!("no probe of {to} could be made: {problem}"),
            Self::Lost(problem) => format!(
                "a probe of {to} from {source} does not arrive ({problem}): the network plugin does not let that source through to pods (strict reverse path filtering, a policy for the host, or a path past netfilter); allow {source}, or the kubelet's probes of pods in ambient mode fail"
            ),
        }
    }
}

fn source(to: IpAddr) -> IpAddr {
    match to {
        IpAddr::V4(_) => PROBE_SOURCE_V4.into(),
        IpAddr::V6(_) => PROBE_SOURCE_V6.into(),
    }
}

/// What the last probe of each family found.
struct Findings {
    /// The families for which rules are made.
    families: Families,
    found: Vec<(Family, Seen, String)>,
}

impl Findings {
    fn take(&mut self, address: IpAddr, seen: Seen) {
        let (family, sentence) = (Family::of(address), seen.sentence(address));
        self.found.retain(|(known, ..)| *known != family);
        self.found.push((family, seen, sentence));
        self.found.sort_unstable_by_key(|(family, ..)| *family);
    }

    /// Whether no probe of a family for which rules are made has arrived as it should yet.
    fn wants(&self, family: Family) -> bool {
        let arrived = |(known, seen, _): &(Family, Seen, String)| *known == family && *seen == Seen::Arrived;
        self.families.has(family) && !self.found.iter().any(arrived)
    }

    fn is_complete(&self) -> bool {
        !Family::BOTH.into_iter().any(|family| self.wants(family))
    }

    fn probed(&self) -> Probed {
        let mut found: Vec<String> = self.found.iter().map(|(.., sentence)| sentence.clone()).collect();
        for family in self.families.iter().filter(|family| !self.found.iter().any(|(known, ..)| known == family)) {
            found.push(format!("{family} is not tried yet: no pod in ambient mode has an address of it"));
        }
        let good = self.found.iter().all(|(_, seen, _)| *seen == Seen::Arrived);
        Probed { found, good: (!self.found.is_empty()).then_some(good) }
    }
}

/// Probes one pod in each family for which rules are made, until a probe of each family arrives as it
/// should. A family of which no pod has an address yet is waited for.
pub(super) async fn until_seen(ambient: Arc<Ambient<Real>>, kubelet_uid: u32) {
    // The rules tell probes by the user who owns the socket.
    let own = nix::unistd::geteuid().as_raw();
    if own != kubelet_uid {
        let what = format!("not tried: the kubelet runs as user {kubelet_uid}, and the agent as {own}");
        return ambient.set_probed(Probed { found: vec![what], good: None });
    }
    let mut findings = Findings { families: ambient.settings.families, found: Vec::new() };
    let mut pause = PAUSES.0;
    let mut said: Vec<String> = Vec::new();
    loop {
        let all = ambient.one_of_each_family();
        let left = all.into_iter().filter(|(_, address)| findings.wants(Family::of(*address)));
        for (place, address) in left.collect::<Vec<_>>() {
            let seen = once(&ambient, &place, address).await;
            let (good, text) = (seen == Seen::Arrived, seen.sentence(address));
            if !said.contains(&text) {
                if good {
                    info!("{text}")
                } else {
                    warn!("{text}")
                }
                said.push(text);
            }
            findings.take(address, seen);
        }
        if !findings.found.is_empty() {
            ambient.set_probed(findings.probed());
            if findings.is_complete() {
                return;
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        tokio::time::sleep(pause).await;
    }
}

/// Probes one address: listens in the pod's namespace, at a port of the kernel's choice and
/// for one connection, and connects from the node.
async fn once(ambient: &Ambient<Real>, place: &super::super::inventory::Place, address: IpAddr) -> Seen {
    let listening = ambient.world.inside_of(place, move || {
        let listener = TcpListener::bind(SocketAddr::new(address, 0))?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    });
    let listener = match listening.await {
        Ok(Ok(listener)) => listener,
        Ok(Err(e)) => return Seen::NotMade(format!("cannot listen in the pod: {e}")),
        Err(e) => return Seen::NotMade(e),
    };
    let probed = async {
        let to = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (_connected, accepted) = tokio::try_join!(tokio::net::TcpStream::connect(to), listener.accept())?;
        Ok::<_, io::Error>(accepted.1.ip().to_canonical())
    };
    match tokio::time::timeout(PATIENCE, probed).await {
        Ok(Ok(from)) if from == source(address) => Seen::Arrived,
        Ok(Ok(from)) => Seen::From(from),
        Ok(Err(e)) => Seen::Lost(e.to_string()),
        Err(_) => Seen::Lost(format!("nothing came within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_arrives_that_was_not_tried_and_each_family_is() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let mut findings = Findings { families: Families::BOTH, found: Vec::new() };
        assert_eq!((findings.probed().good, findings.is_complete()), (None, false));
        findings.take(v4, Seen::Arrived);
        // Only pods with IPv4 so far.
        let probed = findings.probed();
        assert_eq!((probed.good, findings.is_complete()), (Some(true), false));
        assert!(probed.found[1].contains("IPv6 is not tried yet"), "{probed:?}");
        assert!(findings.wants(Family::V6) && !findings.wants(Family::V4));
        findings.take(v6, Seen::Lost("timeout".into()));
        assert_eq!((findings.probed().good, findings.is_complete()), (Some(false), false));
        findings.take(v6, Seen::Arrived);
        assert_eq!((findings.probed().good, findings.is_complete()), (Some(true), true));
        assert_eq!(findings.probed().found.len(), 2);
        // A family that is not programmed is not waited for.
        let mut findings = Findings { families: Families::V4, found: Vec::new() };
        findings.take(v4, Seen::Arrived);
        assert!(findings.is_complete() && findings.probed().found.len() == 1);
    }

    #[test]
    fn what_was_found_says_what_helps() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert!(Seen::Arrived.sentence(v4).contains("from 169.254.7.127"));
        assert!(Seen::Arrived.sentence(v6).contains("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"));
        let other = Seen::From("10.0.0.254".parse().unwrap()).sentence(v4);
        assert!(other.contains("10.0.0.254") && other.contains("probes fail"), "{other}");
        assert!(Seen::Lost("timeout".into()).sentence(v4).contains("allow 169.254.7.127"));
    }
}
