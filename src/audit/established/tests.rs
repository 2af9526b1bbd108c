use super::*;
use crate::config::facts::Facts;
use crate::config::given::{Given, Origin};
use crate::config::options::Opt;
use crate::config::settings::{Face, Settings};
use crate::sys::inet_diag::tests::socket;

struct Pod;

impl Facts for Pod {
    fn addresses(&self) -> io::Result<Vec<std::net::IpAddr>> {
        Ok(vec!["10.244.0.6".parse().unwrap(), "fd00::6".parse().unwrap()])
    }

    fn resolv_conf(&self) -> io::Result<String> {
        Ok(String::new())
    }

    fn passwd(&self) -> io::Result<String> {
        Ok(String::new())
    }

    fn group(&self) -> io::Result<String> {
        Ok(String::new())
    }
}

/// Judges sockets under the rules of some options.
fn judged(options: &[(Opt, &str)], sockets: &[TcpSocket], owners: &[(u32, SocketOwner)], foreign: bool) -> Established {
    let mut given = Given::default();
    options.iter().for_each(|(opt, text)| given.set(*opt, Origin::Flag, *text));
    let settings = Settings::resolve(&given, Face::Init, &Pod).unwrap();
    let ruleset = Ruleset::of_plan(&crate::plan::build(&settings.interception));
    let pod = Surroundings::of(Pod.addresses().unwrap());
    let known = KnownSockets { owners: owners.iter().copied().collect(), foreign, tracked: &mut |_| Ok(None) };
    judge(&ruleset, &pod, sockets, known)
}

fn fates(found: &Established) -> Vec<(Fate, Direction, u16)> {
    found.older.iter().map(|older| (older.fate, older.flow.direction, older.flow.port)).collect()
}

use TcpState::{Established as Open, HalfClosed, Listening};

const TPROXY: &[(Opt, &str)] = &[(Opt::Mode, "TPROXY")];

#[test]
fn what_the_proxy_has_is_not_older_than_the_rules() {
    let redirected = [
        socket(Listening, "0.0.0.0:15001", "0.0.0.0:0", 1337, Some(true)),
        socket(Listening, "0.0.0.0:15006", "0.0.0.0:0", 1337, Some(true)),
        socket(Listening, "0.0.0.0:8080", "0.0.0.0:0", 1000, Some(false)),
        // Out: the app's end, and the proxy's.
        socket(Open, "10.244.0.6:40000", "198.51.100.7:80", 1000, Some(false)),
        socket(Open, "127.0.0.1:15001", "10.244.0.6:40000", 1337, Some(false)),
        // In: the proxy's end of the client's connection, and both ends of its own.
        socket(Open, "10.244.0.6:15006", "192.0.2.9:50000", 1337, Some(false)),
        socket(Open, "127.0.0.6:50001", "10.244.0.6:8080", 1337, Some(false)),
        socket(Open, "10.244.0.6:8080", "127.0.0.6:50001", 1000, Some(false)),
        // What the proxy left open at the app when it went.
        socket(HalfClosed, "10.244.0.6:8080", "127.0.0.6:50002", 1000, Some(false)),
    ];
    let found = judged(&[], &redirected, &[], false);
    assert_eq!((fates(&found), found.proxied), (vec![], 2));
    let handed_over = [
        socket(Listening, "0.0.0.0:15006", "0.0.0.0:0", 0, Some(true)),
        socket(Listening, "0.0.0.0:8080", "0.0.0.0:0", 1000, Some(false)),
        socket(Open, "10.244.0.6:8080", "192.0.2.9:50000", 0, Some(true)),
        socket(Open, "192.0.2.9:50001", "10.244.0.6:8080", 0, Some(true)),
        socket(Open, "10.244.0.6:8080", "192.0.2.9:50001", 1000, Some(false)),
        // The pod calls itself by way of the proxy, which goes in through the inbound side.
        socket(Open, "10.244.0.6:40000", "10.244.0.6:8080", 0, Some(false)),
        socket(Open, "10.244.0.6:8080", "10.244.0.6:40000", 0, Some(true)),
    ];
    let owners = [(40000, SocketOwner { uid: 0, gid: 1337, foreign: false })];
    let found = judged(TPROXY, &handed_over, &owners, false);
    assert_eq!((fates(&found), found.proxied), (vec![], 2));
    // Before Linux 5.10 it is not told which socket is transparent.
    let mut untold = handed_over;
    untold.iter_mut().for_each(|socket| socket.transparent = None);
    assert_eq!(fates(&judged(TPROXY, &untold, &owners, false)), []);
}

#[test]
fn a_socket_that_may_be_the_proxys_is_told_by_its_group_or_not_at_all() {
    let listener = socket(Listening, "0.0.0.0:15006", "0.0.0.0:0", 0, Some(true));
    let upstream = socket(Open, "10.244.0.6:40000", "198.51.100.7:80", 0, Some(false));
    let sockets = [listener, upstream];
    let owner = |gid| SocketOwner { uid: 0, gid, foreign: false };
    let found = judged(TPROXY, &sockets, &[], false);
    assert_eq!((found.older.len(), found.unsure), (0, 1));
    // The other end could begin it as well, by the rules: then it breaks.
    let found = judged(TPROXY, &sockets, &[(40000, owner(1337))], false);
    assert_eq!((fates(&found), found.unsure), (vec![(Fate::MayBreak, Direction::Outbound, 80)], 0));
    let found = judged(TPROXY, &sockets, &[(40000, owner(0))], false);
    assert_eq!((fates(&found), found.unsure), (vec![(Fate::Breaks, Direction::Outbound, 80)], 0));
}

#[test]
fn in_a_user_namespace_users_go_by_the_numbers_that_rules_ask_for() {
    let sockets = [socket(Open, "10.244.0.6:40000", "198.51.100.7:80", 101_337, Some(false))];
    let owner = |uid| SocketOwner { uid, gid: uid, foreign: true };
    let fate =
        |owners: &[(u32, SocketOwner)]| fates(&judged(&[], &sockets, owners, true)).first().map(|(fate, ..)| *fate);
    assert_eq!(fate(&[(40000, owner(1337))]), Some(Fate::MayBreak));
    assert_eq!(fate(&[(40000, owner(1000))]), Some(Fate::Breaks));
    let found = judged(&[], &sockets, &[], true);
    assert_eq!((found.older.len(), found.unsure), (0, 1));
}

#[test]
fn a_half_closed_connection_counts_only_where_it_is_known() {
    let out = |state| [socket(state, "10.244.0.6:40000", "198.51.100.7:80", 1000, Some(false))];
    assert_eq!(fates(&judged(&[], &out(HalfClosed), &[], false)), []);
    assert_eq!(fates(&judged(&[], &out(Open), &[], false)), [(Fate::Breaks, Direction::Outbound, 80)]);
}
