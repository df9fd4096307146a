//! What a guest may reach, rule by rule.

use super::*;
use crate::network::denials::MOST_TOLD;

impl NetworkAccess {
    fn looks_up(&self, name: &str) -> bool {
        self.look_up_denied(name).is_none()
    }
}

fn access(rules: &str, node: NodeNetwork, details: &str) -> Arc<NetworkAccess> {
    let denials = Denials::new("default/pod/main", None);
    let grant = NetworkGrant::new(Arc::new(rules.parse().unwrap()), Arc::new(node), denials);
    NetworkAccess::new(grant, details)
}

fn tcp(access: &NetworkAccess, place: &str) -> bool {
    access.permits(place.parse().unwrap(), SocketAddrUse::TcpConnect)
}

#[tokio::test]
async fn networks_and_names_do_not_open_this_machine_nor_metadata_nor_what_the_node_protects() {
    let node = NodeNetwork::default();
    node.protect(vec!["192.0.2.9".parse().unwrap()]);
    let access = access("tcp 0.0.0.0/0:1-65535\ntcp [::/0]:1-65535\ntcp 127.0.0.1:8080\n", node, "");
    assert!(tcp(&access, "192.0.2.1:80") && tcp(&access, "[2001:db8::1]:80"));
    for place in [
        "127.0.0.1:80",
        "127.8.8.8:80",
        "0.0.0.0:80",
        "[::]:80",
        "[::1]:80",
        "[::ffff:127.0.0.1]:80",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[fd00:ec2::254]:80",
        "192.0.2.9:6443",
        "[::ffff:192.0.2.9]:6443",
    ] {
        assert!(!tcp(&access, place), "{place}");
    }
    assert!(tcp(&access, "127.0.0.1:8080") && tcp(&access, "[::ffff:127.0.0.1]:8080"), "it has a rule of its own");
    assert!(!tcp(&access, "127.0.0.2:8080"));
    assert_eq!(access.grant.node.denials(), 12);
}

#[tokio::test]
async fn answers_to_a_group_come_from_private_addresses_and_others_from_whom_was_asked() {
    let receives =
        |access: &NetworkAccess, place: &str| access.permits(place.parse().unwrap(), SocketAddrUse::UdpReceive);
    let group = access("udp 239.255.255.250:3702", NodeNetwork::default(), "");
    assert!(group.permits("239.255.255.250:3702".parse().unwrap(), SocketAddrUse::UdpSend));
    assert!(!group.permits("239.255.255.250:3703".parse().unwrap(), SocketAddrUse::UdpSend));
    assert!(!group.permits("192.168.1.5:3702".parse().unwrap(), SocketAddrUse::UdpSend));
    assert!(receives(&group, "192.168.1.5:3702") && receives(&group, "[fe80::1]:5353"));
    assert!(!receives(&group, "8.8.8.8:3702") && !receives(&group, "169.254.169.254:80"));
    // A ceiling of what can be had must have a group, too; and a Configuration's URLs open none.
    let below = |ceiling: &str| access("udp 239.255.255.250:3702", NodeNetwork::new(ceiling.parse().unwrap()), "");
    assert!(!receives(&below("tcp 10.0.0.0/8:443"), "192.168.1.5:3702"));
    assert!(receives(&below("udp 239.255.255.250:3702"), "192.168.1.5:3702"));
    let details = r#"["opc.tcp://239.255.255.250:3702/", "http://[ff02::fb]:5353/", "http://255.255.255.255:9/", "http://0.0.0.0:1"]"#;
    let by_details = access("udp details\ntcp details", NodeNetwork::default(), details);
    assert!(!receives(&by_details, "192.168.1.5:3702"));
    for place in ["239.255.255.250:3702", "[ff02::fb]:5353", "255.255.255.255:9"] {
        assert!(!by_details.permits(place.parse().unwrap(), SocketAddrUse::UdpSend), "{place}");
    }
    let one = access("udp 192.168.1.5:161", NodeNetwork::default(), "");
    assert!(
        receives(&one, "192.168.1.5:161") && !receives(&one, "192.168.1.6:161") && !receives(&one, "192.168.1.5:162")
    );
    assert!(one.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::UdpBind));
    assert!(!one.permits("0.0.0.0:161".parse().unwrap(), SocketAddrUse::UdpBind));
    assert!(!one.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::TcpBind));
}

#[tokio::test]
async fn a_name_opens_where_it_leads_unless_that_is_special() {
    let access = access("tcp *.plant.example:80\ndns other.example\ntcp 127.0.0.1:1\n", NodeNetwork::default(), "");
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(access.looks_up("A.plant.example.") && access.looks_up("other.example"));
    assert!(!access.looks_up("plant.example") && !access.looks_up("x.other.example"));
    assert!(!tcp(&access, "203.0.113.1:80"));
    let all = vec![ip("203.0.113.1"), ip("169.254.169.254"), ip("::1"), ip("::ffff:169.254.169.254"), ip("0.0.0.0")];
    assert_eq!(
        access.resolved("a.plant.example", all),
        [ip("203.0.113.1")],
        "a name that leads elsewhere now opens nothing"
    );
    assert!(tcp(&access, "203.0.113.1:80") && !tcp(&access, "203.0.113.1:81") && !tcp(&access, "169.254.169.254:80"));
    // Looked up only; and an address that is granted itself is told.
    assert_eq!(
        access.resolved("other.example", vec![ip("203.0.113.2"), ip("127.0.0.1")]),
        [ip("203.0.113.2"), ip("127.0.0.1")]
    );
    assert!(!tcp(&access, "203.0.113.2:80") && tcp(&access, "127.0.0.1:1") && !tcp(&access, "127.0.0.1:80"));
    for number in 0..1000 {
        access.resolved("a.plant.example", vec![IpAddr::from([198, 51, 100, (number % 256) as u8])]);
    }
    assert!(access.resolved.lock().unwrap().len() <= MOST_RESOLVED);
}

#[tokio::test]
async fn a_ceiling_is_above_every_rule() {
    let all = "tcp 0.0.0.0/0:1-65535\ndns *.example\nlisten tcp 80,81\n";
    let denied = NodeNetwork::new("deny 10.0.0.0/8\ndeny 192.0.2.1:22\ndeny *.corp.example".parse().unwrap());
    let access_denied = access(all, denied, "");
    assert!(
        !tcp(&access_denied, "10.1.2.3:80")
            && !tcp(&access_denied, "192.0.2.1:22")
            && tcp(&access_denied, "192.0.2.1:80")
    );
    assert!(!access_denied.looks_up("a.corp.example") && access_denied.looks_up("a.example"));
    let only = NodeNetwork::new("tcp 192.0.2.0/24:80\nlisten tcp 80".parse().unwrap());
    let access_only = access(all, only, "");
    assert!(
        tcp(&access_only, "192.0.2.1:80")
            && !tcp(&access_only, "192.0.2.1:81")
            && !tcp(&access_only, "198.51.100.1:80")
    );
    assert!(access_only.permits("0.0.0.0:80".parse().unwrap(), SocketAddrUse::TcpBind));
    assert!(!access_only.permits("0.0.0.0:81".parse().unwrap(), SocketAddrUse::TcpBind));
    assert!(!access_only.looks_up("a.example"));
}

#[tokio::test]
async fn details_open_what_their_urls_name_and_no_more() {
    let details = r#"{"discoveryUrls": ["opc.tcp://192.0.2.1:4840/", "opc.tcp://lds.plant.example", "http://[2001:db8::1]/x",
        "https://user:secret@198.51.100.7/?u=http://203.0.113.1/", "opc.tcp://127.0.0.1:4840", "no url", "file:///etc/passwd", "10.0.0.1:80"]}"#;
    let by_details = access("tcp details", NodeNetwork::default(), details);
    assert!(
        tcp(&by_details, "192.0.2.1:4840")
            && tcp(&by_details, "[2001:db8::1]:80")
            && tcp(&by_details, "198.51.100.7:443")
    );
    for place in ["192.0.2.1:80", "203.0.113.1:80", "10.0.0.1:80", "127.0.0.1:4840"] {
        assert!(!tcp(&by_details, place), "{place}");
    }
    assert!(by_details.looks_up("lds.plant.example") && !by_details.looks_up("plant.example"));
    let lds = by_details.resolved("lds.plant.example", vec!["192.0.2.50".parse().unwrap()]);
    assert!(lds.len() == 1 && tcp(&by_details, "192.0.2.50:4840") && !tcp(&by_details, "192.0.2.50:4841"));
    let without = access("tcp 198.51.100.1:1", NodeNetwork::default(), details);
    assert!(!tcp(&without, "192.0.2.1:4840") && !without.looks_up("lds.plant.example"));
}

#[tokio::test]
async fn denials_are_counted_and_told_once() {
    let access = access("tcp 192.0.2.1:80", NodeNetwork::default(), "");
    for _ in 0..1000 {
        assert!(!tcp(&access, "192.0.2.2:80"));
    }
    for port in 1..1000 {
        tcp(&access, &format!("192.0.2.3:{port}"));
    }
    assert_eq!(access.grant.node.denials(), 1999);
    let told = access.grant.denials.told.lock().unwrap();
    assert!(told.len() <= MOST_TOLD && told["tcp connection to 192.0.2.2:80"].1 == 999);
}

#[tokio::test]
async fn a_server_answers_who_has_asked_and_sends_to_nobody_else() {
    let node = NodeNetwork::new("deny 203.0.113.0/24".parse().unwrap());
    let server = access("listen udp 5000\nlisten tcp 80", node, "");
    let use_of = |place: &str, how| server.permits(place.parse().unwrap(), how);
    assert!(!use_of("198.51.100.1:99", SocketAddrUse::UdpSend), "nobody has asked");
    assert!(use_of("198.51.100.1:99", SocketAddrUse::UdpReceive) && use_of("198.51.100.1:99", SocketAddrUse::UdpSend));
    assert!(!use_of("198.51.100.1:98", SocketAddrUse::UdpSend) && !use_of("198.51.100.2:99", SocketAddrUse::UdpSend));
    // What the operator denies neither asks nor is answered.
    assert!(!use_of("203.0.113.7:99", SocketAddrUse::UdpReceive) && !use_of("203.0.113.7:99", SocketAddrUse::UdpSend));
    assert!(!use_of("203.0.113.7:99", SocketAddrUse::TcpAccept) && use_of("198.51.100.1:1", SocketAddrUse::TcpAccept));
    let silent = access("listen udp 5000", NodeNetwork::new("deny listen".parse().unwrap()), "");
    assert!(!silent.permits("0.0.0.0:5000".parse().unwrap(), SocketAddrUse::UdpBind));
}

#[tokio::test]
async fn a_ceiling_of_names_gives_what_they_lead_to() {
    let node = NodeNetwork::new("tcp *.plant.example:4840".parse().unwrap());
    let access = access("tcp 0.0.0.0/0:1-65535\ndns *.example", node, "");
    assert!(access.looks_up("a.plant.example") && !access.looks_up("a.example"));
    assert!(!tcp(&access, "203.0.113.5:4840"));
    access.resolved("a.plant.example", vec!["203.0.113.5".parse().unwrap()]);
    assert!(tcp(&access, "203.0.113.5:4840") && !tcp(&access, "203.0.113.5:80"));
}

#[tokio::test]
async fn a_denial_says_whose_it_is() {
    let told = |access: &NetworkAccess| {
        let told = access.grant.denials.told.lock().unwrap();
        told.keys().cloned().collect::<Vec<_>>().join("; ")
    };
    let connect = SocketAddrUse::TcpConnect;
    let node = NodeNetwork::new("deny 203.0.113.1".parse().unwrap());
    let some = access("tcp 203.0.113.1:80\nlisten tcp 80", node, "");
    let reason = |place: &str, how| some.reason(place.parse().unwrap(), how);
    assert_eq!(reason("203.0.113.1:80", connect), CEILING);
    assert_eq!(reason("127.0.0.1:80", connect), SPECIAL);
    assert!(reason("203.0.113.2:80", connect).starts_with("no rule of its pod"));
    assert!(reason("0.0.0.0:81", SocketAddrUse::TcpBind).contains("`listen`"));
    let none = access("", NodeNetwork::default(), "");
    assert!(!tcp(&none, "203.0.113.2:80") && !none.permits("0.0.0.0:0".parse().unwrap(), SocketAddrUse::UdpBind));
    assert_eq!(none.reason("203.0.113.2:80".parse().unwrap(), connect), NO_RULES);
    assert_eq!(none.look_up_denied("a.example"), Some(NO_RULES));
    assert!(told(&none).contains("tcp connection to 203.0.113.2:80"));
}

mod requests {
    use super::*;
    use crate::network::urls::Certificates;
    use url::Url;

    /// What becomes of a request to a URL whose name leads to an address.
    fn asks(access: &NetworkAccess, url: &str, address: &str) -> Result<Certificates, &'static str> {
        let url = Url::parse(url).unwrap();
        access.may_request(&url, SocketAddr::new(address.parse().unwrap(), url.port_or_known_default().unwrap()))
    }

    #[tokio::test]
    async fn a_request_is_given_by_its_host_its_port_and_its_path() {
        let rules = "http https://*.plant.example/api/*\nhttp http://[10.0.0.0/8]:8080\nhttp http://127.0.0.1:9000\ntcp 192.0.2.7:80\ntcp lds.example:443\n";
        let access = access(rules, NodeNetwork::default(), "");
        let given = Ok(Certificates::Valid);
        assert_eq!(asks(&access, "https://a.plant.example/api/x", "203.0.113.1"), given);
        assert_eq!(asks(&access, "http://10.1.2.3:8080/x", "10.1.2.3"), given);
        assert_eq!(asks(&access, "http://127.0.0.1:9000/", "127.0.0.1"), given, "it has a rule of its own");
        assert_eq!(asks(&access, "http://192.0.2.7/", "192.0.2.7"), given, "who may connect may ask");
        assert_eq!(asks(&access, "https://lds.example/", "203.0.113.1"), given);
        for (url, address) in [
            ("https://a.plant.example/secret", "203.0.113.1"),
            ("http://a.plant.example/api/x", "203.0.113.1"),
            ("https://plant.example/api/x", "203.0.113.1"),
            ("http://10.1.2.3/", "10.1.2.3"),
            ("http://192.0.2.8/", "192.0.2.8"),
            ("http://127.0.0.1:9001/", "127.0.0.1"),
        ] {
            assert_eq!(asks(&access, url, address), Err(NO_RULE), "{url}");
        }
        // A name leads where it likes.
        for address in ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0"] {
            assert_eq!(asks(&access, "https://a.plant.example/api/x", address), Err(SPECIAL), "{address}");
        }
        assert!(access.looks_up("b.plant.example") && !access.looks_up("plant.example"));
        assert_eq!(
            asks(&super::access("", NodeNetwork::default(), ""), "http://a.example", "203.0.113.1"),
            Err(NO_RULES)
        );
    }

    #[tokio::test]
    async fn details_give_requests_to_what_they_name() {
        let details = r#"["http://inventory.example:8080/list", {"url": "https://10.0.0.1"}, "http://127.0.0.1:1", "ftp://a.example"]"#;
        let access = access("http details any-certificate", NodeNetwork::default(), details);
        let given = Ok(Certificates::Any);
        assert_eq!(asks(&access, "http://inventory.example:8080/other", "203.0.113.1"), given);
        assert_eq!(asks(&access, "https://10.0.0.1/x", "10.0.0.1"), given);
        assert_eq!(asks(&access, "http://127.0.0.1:1/", "127.0.0.1"), Err(SPECIAL));
        assert_eq!(asks(&access, "http://inventory.example/", "203.0.113.1"), Err(NO_RULE));
        assert!(access.looks_up("inventory.example") && !access.looks_up("a.example"));
        assert!(!tcp(&access, "203.0.113.1:8080"), "requests only");
    }

    #[tokio::test]
    async fn what_is_asked_of_a_server_is_what_is_said_of_it_by_name() {
        let rules =
            "http https://inventory.example\nhttp https://[10.0.0.0/8] any-certificate\nhttp details any-certificate\n";
        let details = r#"["https://inventory.example/", "https://other.example/"]"#;
        let below = |ceiling: &str| access(rules, NodeNetwork::new(ceiling.parse().unwrap()), details);
        let access = below("");
        // Its name leads into the network of cameras now.
        assert_eq!(asks(&access, "https://inventory.example/", "10.0.0.66"), Ok(Certificates::Valid));
        assert_eq!(asks(&access, "https://10.0.0.7/", "10.0.0.7"), Ok(Certificates::Any));
        assert_eq!(asks(&access, "https://other.example/", "203.0.113.1"), Ok(Certificates::Any));
        let strict = below("http https://[0.0.0.0/0]");
        assert_eq!(asks(&strict, "https://10.0.0.7/", "10.0.0.7"), Ok(Certificates::Valid));
        let lenient = below("http https://[0.0.0.0/0] any-certificate");
        assert_eq!(asks(&lenient, "https://10.0.0.7/", "10.0.0.7"), Ok(Certificates::Any));
    }

    #[tokio::test]
    async fn a_ceiling_is_above_requests() {
        let denies = || NodeNetwork::new("deny 10.0.0.0/8\ndeny *.corp.example".parse().unwrap());
        let below = access("http http://[0.0.0.0/0]\nhttp https://*.example", denies(), "");
        assert_eq!(asks(&below, "http://10.0.0.1/", "10.0.0.1"), Err(CEILING));
        assert_eq!(asks(&below, "https://a.example/", "10.0.0.1"), Err(CEILING));
        assert!(asks(&below, "https://a.example/", "203.0.113.1").is_ok());
        assert_eq!(below.look_up_denied("a.corp.example"), Some(CEILING));
        let only = NodeNetwork::new("http https://*.example/api/*".parse().unwrap());
        let below = access("http https://*.example\ntcp a.example:443", only, "");
        assert!(asks(&below, "https://a.example/api/x", "203.0.113.1").is_ok());
        assert_eq!(asks(&below, "https://a.example/", "203.0.113.1"), Err(CEILING));
        below.resolved("a.example", vec!["203.0.113.1".parse().unwrap()]);
        assert!(!tcp(&below, "203.0.113.1:443"));
    }
}
