//! What is said between the agent and a ztunnel: ZDS, version 1, one message of Protocol
//! Buffers (proto3) a packet (`zds.proto` of istio/ztunnel and istio/istio).

use prost::Message;

/// The longest packet that a ztunnel reads: with a longer one it ends the connection.
pub const LONGEST_REQUEST: usize = 1024;
/// The longest packet that is read from a ztunnel: errors come with their backtraces.
pub const LONGEST_RESPONSE: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Version {
    NotUsed = 0,
    V1 = 1,
}

/// A ztunnel's greeting, its first message. It is not acknowledged.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ZdsHello {
    #[prost(enumeration = "Version", tag = "1")]
    pub version: i32,
}

/// What a ztunnel is told of a pod beside its namespace.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WorkloadInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// Tells a ztunnel to take a pod's traffic; the pod's network namespace comes as a descriptor.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AddWorkload {
    #[prost(string, tag = "1")]
    pub uid: String,
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Tells a ztunnel to drop a pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DelWorkload {
    // Not 1, as everywhere else.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// Tells a ztunnel to keep a pod if it knows it: the pod's namespace is not known here (yet).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeepWorkload {
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// Ends the snapshot: a ztunnel drops the pods that were not in it.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct SnapshotSent {}

/// A request of the agent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadRequest {
    #[prost(oneof = "RequestKind", tags = "1, 2, 3, 5")]
    pub payload: Option<RequestKind>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum RequestKind {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// Whether a request was carried out: if so, the text of the error is empty.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Ack {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// A ztunnel's answer to a request.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WorkloadResponse {
    #[prost(oneof = "Response", tags = "1")]
    pub payload: Option<Response>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Response {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// Encodes a request as a packet.
pub fn encode(request: RequestKind) -> Vec<u8> {
    WorkloadRequest { payload: Some(request) }.encode_to_vec()
}

/// Reads a greeting: the version of ZDS that a ztunnel speaks.
///
/// # Errors
/// The packet is no greeting.
pub fn hello(packet: &[u8]) -> Result<i32, prost::DecodeError> {
    ZdsHello::decode(packet).map(|hello| hello.version)
}

/// Reads an acknowledgement: that the request was carried out, or why not.
///
/// # Errors
/// The packet is no acknowledgement; what is wrong with it.
pub fn ack(packet: &[u8]) -> Result<Result<(), String>, String> {
    match WorkloadResponse::decode(packet).map_err(|e| e.to_string())?.payload {
        Some(Response::Ack(ack)) if ack.error.is_empty() => Ok(Ok(())),
        Some(Response::Ack(ack)) => Ok(Err(ack.error)),
        None => Err("it acknowledges nothing".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let info = WorkloadInfo { name: "a".into(), namespace: "b".into(), service_account: "c".into() };
        let add = encode(RequestKind::Add(AddWorkload { uid: "u".into(), workload_info: Some(info) }));
        assert_eq!(add, b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01a\x12\x01b\x1a\x01c");
        assert_eq!(encode(RequestKind::Del(DelWorkload { uid: "u".into() })), b"\x12\x03\x12\x01u");
        assert_eq!(encode(RequestKind::SnapshotSent(SnapshotSent {})), b"\x1a\x00");
        assert_eq!(encode(RequestKind::Keep(KeepWorkload { uid: "u".into() })), b"\x2a\x03\x0a\x01u");
        assert_eq!(hello(b"\x08\x01"), Ok(1));
        assert_eq!(hello(b""), Ok(0));
        assert!(hello(b"\xff").is_err());
        assert_eq!(ack(b"\x0a\x00"), Ok(Ok(())));
        assert_eq!(ack(b"\x0a\x04\x0a\x02no"), Ok(Err("no".into())));
        assert!(ack(b"").unwrap_err().contains("nothing"));
        assert!(ack(b"\x0a\x7f").is_err());
    }

    #[test]
    fn the_longest_names_of_kubernetes_fit_what_a_ztunnel_reads() {
        // Names of pods and accounts are at most 253 letters long, of namespaces 63.
        let info = WorkloadInfo { name: "p".repeat(253), namespace: "n".repeat(63), service_account: "s".repeat(253) };
        let uid = "0a1b2c3d-1111-2222-3333-444455556666".into();
        let packet = encode(RequestKind::Add(AddWorkload { uid, workload_info: Some(info) }));
        assert!(packet.len() <= LONGEST_REQUEST, "{}", packet.len());
    }
}
