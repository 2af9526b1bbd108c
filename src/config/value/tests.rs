//! Which texts give which values, and which are refused.

use super::*;

#[test]
fn ports_and_ranges() {
    let list = port_list("80, 443,,8000-8100,").unwrap();
    assert_eq!(list.iter().collect::<Vec<_>>(), [(80, 80), (443, 443), (8000, 8100)]);
    assert!(port_list("").unwrap().is_empty());
    assert_eq!(port_selection("*").unwrap(), PortSelection::All);
    for bad in ["99999", "abc", "0", "*,80", "80-70", "-80", "80-", "1-2-3", "+80", "8 0", "0x50"] {
        assert!(port_selection(bad).is_err(), "{bad}");
    }
    for bad in ["", "0", "70000", "abc", "15001-15010", "*"] {
        assert!(port(bad).is_err(), "{bad}");
    }
}

#[test]
fn neighbours_are_put_together_where_there_are_many() {
    let list = |ports: std::ops::RangeInclusive<u16>| {
        let text: Vec<String> = ports.rev().map(|port| port.to_string()).collect();
        port_list(&text.join(",")).unwrap()
    };
    assert_eq!(list(1..=300).len(), 300);
    assert_eq!(list(1..=301).iter().collect::<Vec<_>>(), [(1, 301)]);
}

#[test]
fn ranges_of_addresses() {
    let mut warnings = Vec::new();
    let nets = networks("10.0.0.0/8,1.2.3.4,2001:db8::1/32", &mut |w| warnings.push(w)).unwrap();
    assert_eq!(nets.v4.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "1.2.3.4/32"]);
    assert_eq!(nets.v6[0].to_string(), "2001:db8::/32");
    assert_eq!(warnings.len(), 1);
    for bad in ["notacidr", "10.0.0.0/33", "*,10.0.0.0/8", "10.0.0/8", "10.0.0.0/8/8", "::/129"] {
        assert!(range_selection(bad, &mut |_| ()).is_err(), "{bad}");
    }
    assert!(networks("*", &mut |_| ()).is_err());
}

#[test]
fn marks_tables_modes_booleans() {
    assert_eq!(mark("0x539").unwrap(), Mark::new(1337));
    for bad in ["abc", "0", "1338", "0x", "0x+1", "4294967296", "-1"] {
        assert!(mark(bad).is_err(), "{bad}");
    }
    for bad in ["abc", "0", "253", "254", "255", "-1"] {
        assert!(route_table(bad).is_err(), "{bad}");
    }
    assert!(mode("BOGUS").is_err() && mode("").is_err());
    assert!(boolean("yes please").is_err() && boolean("").is_err());
}

#[test]
fn durations() {
    assert_eq!(duration("1m30s").unwrap(), Duration::from_secs(90));
    assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
    assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
    for bad in ["soon", "", "5", "-5s", "s", "5s5", "0s", "1e9h", "9999h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn interface_names() {
    assert!(interfaces("eth1,net1,veth+").is_ok());
    for bad in ["this-name-is-far-too-long", "a/b", "a b", "+", "..", "a\"b", "a;b", "ä"] {
        assert!(interfaces(bad).is_err(), "{bad}");
    }
    assert!(interfaces("exactly15chars1").is_ok());
}

#[test]
fn owners() {
    let names = |n: &str| (n == "backup").then_some(34);
    let list = id_list("1000,2000-2010,backup", &names).unwrap();
    assert_eq!(list.iter().collect::<Vec<_>>(), [(1000, 1000), (2000, 2010), (34, 34)]);
    for bad in ["4294967295", "4294967296", "nobody-here", "-1", "10-5"] {
        assert!(id_list(bad, &names).is_err(), "{bad}");
    }
}

#[test]
fn loopback_ranges() {
    assert_eq!(loopback("127.0.0.1/8", &mut |_| ()).unwrap().to_string(), "127.0.0.0/8");
    for bad in ["10.0.0.0/8", "126.0.0.0/7", "::1/128", "x", "0.0.0.0/0"] {
        assert!(loopback(bad, &mut |_| ()).is_err(), "{bad}");
    }
}
