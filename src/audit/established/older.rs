//! Connections that are older than the rules, and what becomes of them.

use std::io;
use std::ops::RangeInclusive;

use crate::audit::flow::Flow;
use crate::backend::connections::TcpConnection;
use crate::sys::inet_diag::TcpSocket;

/// What becomes of a connection that is older than the rules that would take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// The connection goes on past the proxy until it ends.
    Passes,
    /// The connection's next packet breaks it.
    Breaks,
    /// Rules leave it alone, but would take a connection begun by its other end: it breaks
    /// if the next packet comes from there.
    MayBreak,
}

/// A connection that is older than the rules.
#[derive(Debug, Clone)]
pub struct Older {
    pub fate: Fate,
    /// The connection's first packet, as it would be today.
    pub flow: Flow,
    pub connection: TcpConnection,
}

/// The established connections of a pod.
#[derive(Debug, Default)]
pub struct Established {
    pub older: Vec<Older>,
    /// How many connections go through the proxy.
    pub proxied: usize,
    /// How many may be older or the proxy's own: they have the user whom it runs as, and
    /// the rest of what rules ask about an owner cannot be seen from here.
    pub unsure: usize,
    /// The sockets that listen where inbound connections are diverted to.
    pub inbound_listeners: Vec<TcpSocket>,
    /// From which ports the pod begins connections, where that can be told.
    pub source_ports: Option<RangeInclusive<u16>>,
    /// Why connection tracking could not be queried; connections that it may know are taken to pass the
    /// proxy by.
    pub untold: Option<io::Error>,
}
