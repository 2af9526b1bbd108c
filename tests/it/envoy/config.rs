//! What a sidecar's Envoy is told: the listeners, filter chains and clusters that an
//! injector's control plane gives it, as a static file. One thing is added, so that the
//! outside can tell who sent a packet: connections to the outside come from an address of
//! the proxy's own.

use std::net::IpAddr;

use serde_json::{Value, json};

/// What a family's part of the configuration and of the expectations is made of.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// The pod's address, from which the app sends.
    pub pod: &'static str,
    /// From where the proxy connects to the outside.
    pub proxy: &'static str,
    /// Where a client of the pod is.
    pub client: &'static str,
    /// Some server outside.
    pub server: &'static str,
    /// A server in a range that is excluded.
    pub excluded: &'static str,
    /// Two servers behind one service.
    pub backends: [&'static str; 2],
    /// The virtual addresses of a service outside and of the pod's own service.
    pub service: &'static str,
    pub own_service: &'static str,
    /// From where the proxy connects to the app on behalf of a client, with REDIRECT.
    pub passthrough: &'static str,
    pub loopback: &'static str,
    wildcard: &'static str,
}

pub const V4: Family = Family {
    pod: "10.244.0.6",
    proxy: "10.244.0.66",
    client: "10.244.0.1",
    server: "198.51.100.7",
    excluded: "203.0.113.7",
    backends: ["198.51.100.21", "198.51.100.22"],
    service: "10.96.0.20",
    own_service: "10.96.0.30",
    passthrough: "127.0.0.6",
    loopback: "127.0.0.1",
    wildcard: "0.0.0.0",
};

pub const V6: Family = Family {
    pod: "fd00:10:244::6",
    proxy: "fd00:10:244::66",
    client: "fd00:10:244::1",
    server: "2001:db8::7",
    excluded: "2001:db8:113::7",
    backends: ["2001:db8::21", "2001:db8::22"],
    service: "fd00:10:96::20",
    own_service: "fd00:10:96::30",
    passthrough: "::6",
    loopback: "::1",
    wildcard: "::",
};

impl Family {
    pub fn is_v4(&self) -> bool {
        self.pod.parse::<IpAddr>().unwrap().is_ipv4()
    }

    /// The cluster that passes inbound connections of this family on to ports nobody declared.
    pub fn inbound_passthrough(&self) -> &'static str {
        if self.is_v4() { "InboundPassthroughClusterIpv4" } else { "InboundPassthroughClusterIpv6" }
    }
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

fn filter(name: &str, kind: &str, config: Value) -> Value {
    let mut typed = json!({ "@type": format!("type.googleapis.com/envoy.extensions.filters.{kind}") });
    typed.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    json!({ "name": format!("envoy.filters.{name}"), "typed_config": typed })
}

fn tcp_proxy(cluster: &str) -> Value {
    let config = json!({ "stat_prefix": cluster, "cluster": cluster });
    filter("network.tcp_proxy", "network.tcp_proxy.v3.TcpProxy", config)
}

/// An HTTP connection manager; `hosts` are names with the cluster each leads to, `*` among them.
fn http(name: &str, hosts: &[(&str, &str)]) -> Value {
    let virtual_hosts: Vec<Value> = hosts
        .iter()
        .map(|(host, cluster)| {
            let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
            json!({ "name": host, "domains": [host], "routes": [route] })
        })
        .collect();
    manager(name, &json!(virtual_hosts))
}

fn manager(name: &str, virtual_hosts: &Value) -> Value {
    let router = filter("http.router", "http.router.v3.Router", json!({}));
    let config = json!({
        "stat_prefix": name, "codec_type": "AUTO", "http_filters": [router],
        "route_config": { "name": name, "virtual_hosts": virtual_hosts },
    });
    filter("network.http_connection_manager", "network.http_connection_manager.v3.HttpConnectionManager", config)
}

/// A listener on a port of every family's wildcard or service address.
fn listener(name: &str, hosts: &[&str], port: u16, rest: Value) -> Value {
    let more: Vec<Value> = hosts[1..].iter().map(|host| json!({ "address": address(host, port) })).collect();
    let mut listener = json!({ "name": name, "address": address(hosts[0], port), "additional_addresses": more });
    listener.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    listener
}

fn original_dst() -> Value {
    filter("listener.original_dst", "listener.original_dst.v3.OriginalDst", json!({}))
}

/// What takes outbound connections: one listener with a port, which hands them to the one
/// of their original destination, or passes them on.
fn outbound(families: &[Family], tproxy: bool) -> Vec<Value> {
    let pick = |of: fn(&Family) -> &'static str| families.iter().map(of).collect::<Vec<_>>();
    let wildcards = pick(|family| family.wildcard);
    let service = |name: &str, hosts: &[&str], port: u16, work: Value| {
        let chains = json!([{ "filters": [work] }]);
        listener(name, hosts, port, json!({ "bind_to_port": false, "filter_chains": chains }))
    };
    let virtual_outbound = json!({
        "transparent": tproxy, "use_original_dst": true, "traffic_direction": "OUTBOUND",
        "filter_chains": [
            { "name": "blackhole", "filter_chain_match": { "destination_port": 15001 }, "filters": [tcp_proxy("BlackHoleCluster")] },
        ],
        "default_filter_chain": { "name": "passthrough", "filters": [tcp_proxy("PassthroughCluster")] },
    });
    let hosts = [("web.shop", "outbound|80||web"), ("own.shop", "outbound|80||own"), ("*", "PassthroughCluster")];
    vec![
        listener("virtualOutbound", &wildcards, 15001, virtual_outbound),
        service("80", &wildcards, 80, http("80", &hosts)),
        service("db", &pick(|family| family.service), 5432, tcp_proxy("outbound|5432||db")),
        service("own", &pick(|family| family.own_service), 9000, tcp_proxy("outbound|9000||own")),
    ]
}

/// What takes inbound connections: declared ports through HTTP, others passed on. With
/// TPROXY it connects to the app with the client's address.
fn inbound(families: &[Family], tproxy: bool) -> Value {
    let mut chains = vec![
        json!({ "name": "blackhole", "filter_chain_match": { "destination_port": 15006 }, "filters": [tcp_proxy("BlackHoleCluster")] }),
        json!({ "name": "8080", "filter_chain_match": { "destination_port": 8080 }, "filters": [http("inbound", &[("*", "inbound|8080||")])] }),
    ];
    for family in families {
        let everything = json!({ "prefix_ranges": [{ "address_prefix": family.wildcard, "prefix_len": 0 }] });
        let filters = [tcp_proxy(family.inbound_passthrough())];
        chains.push(json!({ "name": family.wildcard, "filter_chain_match": everything, "filters": filters }));
    }
    let mut filters = vec![original_dst()];
    if tproxy {
        let config = json!({ "mark": 1337 });
        filters.push(filter("listener.original_src", "listener.original_src.v3.OriginalSrc", config));
    }
    let rest = json!({
        "transparent": tproxy, "traffic_direction": "INBOUND", "listener_filters": filters, "filter_chains": chains,
    });
    let wildcards: Vec<&str> = families.iter().map(|family| family.wildcard).collect();
    listener("virtualInbound", &wildcards, 15006, rest)
}

/// What the kubelet asks whether the proxy is ready: never intercepted.
fn health(families: &[Family]) -> Value {
    let answer = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "ready" } } });
    let hosts = json!([{ "name": "health", "domains": ["*"], "routes": [answer] }]);
    let wildcards: Vec<&str> = families.iter().map(|family| family.wildcard).collect();
    listener("health", &wildcards, 15021, json!({ "filter_chains": [{ "filters": [manager("health", &hosts)] }] }))
}

/// The source addresses of a cluster's connections, one of each family.
fn bind(families: &[Family], of: fn(&Family) -> &'static str) -> Value {
    let source = |family: &Family| json!({ "address": of(family), "port_value": 0 });
    let more: Vec<Value> = families[1..].iter().map(|family| json!({ "address": source(family) })).collect();
    json!({ "source_address": source(&families[0]), "extra_source_addresses": more })
}

fn clusters(families: &[Family]) -> Vec<Value> {
    let original = |name: &str, bind: Value| json!({ "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s", "upstream_bind_config": bind });
    let fixed = |name: &str, endpoints: Vec<Value>, bind: Option<Value>| {
        let endpoints: Vec<Value> = endpoints.into_iter().map(|at| json!({ "endpoint": { "address": at } })).collect();
        let mut cluster = json!({
            "name": name, "type": "STATIC", "lb_policy": "ROUND_ROBIN", "connect_timeout": "5s",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
        });
        if let Some(bind) = bind {
            cluster["upstream_bind_config"] = bind;
        }
        cluster
    };
    let backends = |port| families.iter().flat_map(|f| f.backends).map(|host| address(host, port)).collect::<Vec<_>>();
    let pod = |port| families.iter().map(|f| address(f.pod, port)).collect::<Vec<_>>();
    let own = || Some(bind(families, |family| family.proxy));
    let mut all = vec![
        original("PassthroughCluster", bind(families, |family| family.proxy)),
        fixed("BlackHoleCluster", vec![], None),
        fixed("outbound|80||web", backends(80), own()),
        fixed("outbound|5432||db", backends(5432), own()),
        fixed("outbound|80||own", pod(8080), None),
        fixed("outbound|9000||own", pod(9000), None),
        original("inbound|8080||", bind(families, |family| family.passthrough)),
    ];
    for family in families {
        all.push(original(family.inbound_passthrough(), bind(&[*family], |family| family.passthrough)));
    }
    all
}

/// The whole file; `admin` is the socket on which it tells what it counted.
pub fn envoy(families: &[Family], tproxy: bool, admin: &str) -> Value {
    let mut listeners = outbound(families, tproxy);
    listeners.push(inbound(families, tproxy));
    listeners.push(health(families));
    json!({
        "node": { "id": "sidecar~web-0.shop", "cluster": "web.shop" },
        "admin": { "address": { "pipe": { "path": admin } } },
        "static_resources": { "listeners": listeners, "clusters": clusters(families) },
    })
}
