//! A synthetic probe at the start: whether what is between the node and its pods lets
//! through what comes from the probes' own address. Network plugins that drop it, or write
//! another source into it, make the kubelet's probes fail where plain text is refused.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::ambient::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};

use super::Ambient;
use super::real::Real;

/// How long a probe may take, and how often one is made until one arrives as it should.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// It arrived from the probes' address.
    Arrived,
    /// It arrived, from another address.
    From(IpAddr),
    /// It did not arrive.
    Lost(String),
    /// It could not be made.
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

/// Probes the first pod there is, in each family, until a probe arrives as it should.
pub(super) async fn until_seen(ambient: Arc<Ambient<Real>>, kubelet_uid: u32) {
    // The rules tell probes by the user who owns the socket.
    let own = nix::unistd::geteuid().as_raw();
    if own != kubelet_uid {
        let what = format!("not tried: the kubelet runs as user {kubelet_uid}, and the agent as {own}");
        return ambient.set_probed(vec![what], true);
    }
    let mut pause = PAUSES.0;
    let mut said: Vec<String> = Vec::new();
    loop {
        let mut all = Vec::new();
        let mut good = true;
        for (place, address) in ambient.one_of_each_family() {
            let seen = once(&ambient, &place, address).await;
            good &= seen == Seen::Arrived;
            all.push(seen.sentence(address));
        }
        if !all.is_empty() {
            for text in all.iter().filter(|text| !said.contains(text)) {
                if good { info!("{text}") } else { warn!("{text}") }
            }
            said.clone_from(&all);
            ambient.set_probed(all, good);
            if good {
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
    fn what_was_found_says_what_helps() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        assert!(Seen::Arrived.sentence(v4).contains("from 169.254.7.127"));
        assert!(Seen::Arrived.sentence(v6).contains("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"));
        let other = Seen::From("10.0.0.254".parse().unwrap()).sentence(v4);
        assert!(other.contains("10.0.0.254") && other.contains("probes fail"), "{other}");
        assert!(Seen::Lost("timeout".into()).sentence(v4).contains("allow 169.254.7.127"));
    }
}
