//! The part of TCP that one short exchange needs, in bytes: a client outside of the kernel, so that its
//! packets come to the pod from outside (RFC 9293, RFC 791, RFC 8200).

use std::net::{IpAddr, SocketAddr};

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

pub(super) use crate::sys::link::Mac;

/// A TCP segment with its addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub data: Vec<u8>,
}

/// The Internet checksum (RFC 1071) over some bytes, on top of a sum so far.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An Ethernet frame with a segment.
pub(super) fn frame(macs: (Mac, Mac), segment: &Segment) -> Vec<u8> {
    let (from, to) = (octets(segment.from.ip()), octets(segment.to.ip()));
    let mut tcp = Vec::with_capacity(20 + segment.data.len());
    tcp.extend(segment.from.port().to_be_bytes());
    tcp.extend(segment.to.port().to_be_bytes());
    tcp.extend(segment.sequence.to_be_bytes());
    tcp.extend(segment.acknowledged.to_be_bytes());
    tcp.extend([5 << 4, segment.flags]);
    tcp.extend(u16::MAX.to_be_bytes()); // window
    tcp.extend([0, 0, 0, 0]); // checksum, urgent pointer
    tcp.extend(&segment.data);
    let length = tcp.len() as u32;
    let pseudo = sum(&to, sum(&from, 6 + length));
    let checksum = fold(sum(&tcp, pseudo));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());

    let mut out = Vec::with_capacity(54 + tcp.len());
    out.extend(macs.1);
    out.extend(macs.0);
    if segment.from.is_ipv4() {
        out.extend([0x08, 0x00]);
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp.len() as u16).to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]); // id, don't fragment, TTL, TCP, checksum
        ip.extend(&from);
        ip.extend(&to);
        let checksum = fold(sum(&ip, 0));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        out.extend(ip);
    } else {
        out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        out.extend((tcp.len() as u16).to_be_bytes());
        out.extend([6, 64]); // TCP, hop limit
        out.extend(&from);
        out.extend(&to);
    }
    out.extend(tcp);
    out
}

/// The segment in an Ethernet frame, if there is one. Checksums are not looked at: the
/// sender is the kernel next door, which may not have computed them yet.
pub(super) fn parse(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(14..)?;
    let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            if packet.get(9) != Some(&6) {
                return None;
            }
            let address = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
            (address(12)?, address(16)?, packet.get(header..total)?)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            if packet.get(6) != Some(&6) {
                return None;
            }
            let address = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
            (address(8)?, address(24)?, packet.get(40..40 + length)?)
        }
        _ => return None,
    };
    let half = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, half(0)?),
        to: SocketAddr::new(to, half(2)?),
        sequence: word(4)?,
        acknowledged: word(8)?,
        flags: *tcp.get(13)?,
        data: tcp.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: &str, to: &str, data: &[u8]) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            sequence: 7,
            acknowledged: 9,
            flags: SYN | ACK,
            data: data.into(),
        }
    }

    #[test]
    fn frames_parse_back() {
        for (from, to) in [("192.0.2.2:4000", "10.244.0.6:80"), ("[2001:db8::2]:4000", "[fd00::6]:80")] {
            let sent = segment(from, to, b"odd");
            let bytes = frame(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]), &sent);
            assert_eq!(parse(&bytes).unwrap(), sent);
            for end in 0..bytes.len() {
                assert!(parse(&bytes[..end]).is_none_or(|s| s == sent));
            }
        }
    }

    #[test]
    fn checksums_sum_up_to_zero() {
        let bytes = frame(([0; 6], [0; 6]), &segment("192.0.2.2:4000", "10.244.0.6:80", b"abc"));
        assert_eq!(fold(sum(&bytes[14..34], 0)), 0);
        let tcp = &bytes[34..];
        assert_eq!(fold(sum(tcp, sum(&bytes[26..34], 6 + tcp.len() as u32))), 0);
    }
}
