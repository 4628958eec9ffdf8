use super::*;
use dhcproto::{Decodable, Decoder};
use proptest::prelude::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn offer(search: &[&str]) -> Offer {
    let servers = vec![Ipv4Addr::new(10, 96, 0, 10)];
    let dns = Dns { servers, search: search.iter().map(|domain| (*domain).to_owned()).collect() };
    Offer::new(MAC, "vse-0", &dns).unwrap().with_mtu(1450)
}

fn question(options: &[DhcpOption]) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, none, none, none, none, &MAC.0);
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn ask(offer: &Offer, message: &Message) -> Option<(Message, Ipv4Addr)> {
    let Answer { bytes, destination } = offer.answer(&bytes(message))?;
    Some((Message::decode(&mut Decoder::new(&bytes)).unwrap(), destination))
}

fn kind(answer: Option<(Message, Ipv4Addr)>) -> Option<MessageType> {
    answer?.0.opts().msg_type()
}

use DhcpOption::{MessageType as Kind, RequestedIpAddress as Requested, ServerIdentifier as Server};

#[test]
fn discover_is_offered_everything() {
    let (answer, destination) =
        ask(&offer(&["ns.svc.cluster.local"]), &question(&[Kind(MessageType::Discover)])).unwrap();
    assert_eq!(destination, Ipv4Addr::BROADCAST);
    assert_eq!((answer.opcode(), answer.xid(), answer.yiaddr()), (Opcode::BootReply, 7, GUEST));
    let get = |code| answer.opts().get(code).unwrap().clone();
    assert_eq!(answer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!(get(OptionCode::ServerIdentifier), Server(GATEWAY));
    assert_eq!(get(OptionCode::SubnetMask), DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    assert_eq!(get(OptionCode::Router), DhcpOption::Router(vec![GATEWAY]));
    assert_eq!(get(OptionCode::InterfaceMtu), DhcpOption::InterfaceMtu(1450));
    assert_eq!(get(OptionCode::AddressLeaseTime), DhcpOption::AddressLeaseTime(FOREVER));
    assert_eq!(get(OptionCode::Hostname), DhcpOption::Hostname("vse-0".into()));
    let servers = vec![Ipv4Addr::new(10, 96, 0, 10)];
    assert_eq!(get(OptionCode::DomainNameServer), DhcpOption::DomainNameServer(servers));
    let DhcpOption::DomainSearch(search) = get(OptionCode::DomainSearch) else { panic!() };
    assert_eq!(search[0].to_utf8().trim_end_matches('.'), "ns.svc.cluster.local");
}

#[test]
fn request_is_acknowledged_only_for_the_guests_address() {
    let offer = offer(&[]);
    let request = |options: &[DhcpOption]| {
        let options: Vec<_> = [Kind(MessageType::Request)].iter().chain(options).cloned().collect();
        question(&options)
    };
    let other = Ipv4Addr::new(192, 168, 0, 9);
    assert_eq!(kind(ask(&offer, &request(&[Requested(GUEST), Server(GATEWAY)]))), Some(MessageType::Ack));
    assert_eq!(kind(ask(&offer, &request(&[Requested(GUEST)]))), Some(MessageType::Ack));
    assert_eq!(kind(ask(&offer, &request(&[Requested(other)]))), Some(MessageType::Nak));
    assert_eq!(kind(ask(&offer, &request(&[Requested(GUEST), Server(other)]))), None);
    assert_eq!(kind(ask(&offer, &request(&[]))), Some(MessageType::Nak));
}

#[test]
fn renewal_is_answered_where_the_client_is() {
    let mut renewal = question(&[Kind(MessageType::Request)]);
    renewal.set_ciaddr(GUEST);
    let (answer, destination) = ask(&offer(&[]), &renewal).unwrap();
    assert_eq!((destination, answer.ciaddr(), answer.yiaddr()), (GUEST, GUEST, GUEST));
}

#[test]
fn inform_gives_no_address() {
    let mut inform = question(&[Kind(MessageType::Inform)]);
    inform.set_ciaddr(GUEST);
    let (answer, _) = ask(&offer(&[]), &inform).unwrap();
    assert_eq!(answer.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(answer.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(answer.opts().get(OptionCode::AddressLeaseTime).is_none());
}

#[test]
fn strangers_relays_and_replies_are_ignored() {
    let discover = question(&[Kind(MessageType::Discover)]);
    let mut stranger = discover.clone();
    stranger.set_chaddr(&[2, 0, 0, 0, 0, 2]);
    let mut relayed = discover.clone();
    relayed.set_giaddr(Ipv4Addr::new(10, 0, 2, 9));
    let mut reply = discover.clone();
    reply.set_opcode(Opcode::BootReply);
    for message in [stranger, relayed, reply, question(&[]), question(&[Kind(MessageType::Release)])] {
        assert_eq!(ask(&offer(&[]), &message), None);
    }
}

#[test]
fn search_domains_are_shortened_to_what_the_client_takes() {
    let domains: Vec<String> = (0..32).map(|i| format!("domain-{i}.a-rather-long-name-{i}.example{i}")).collect();
    let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
    let count = |max: Option<u16>| {
        let max = max.map(DhcpOption::MaxMessageSize);
        let options: Vec<_> = [Kind(MessageType::Discover)].into_iter().chain(max).collect();
        let answer = offer(&domains).answer(&bytes(&question(&options))).unwrap().bytes;
        let message = Message::decode(&mut Decoder::new(&answer)).unwrap();
        let Some(DhcpOption::DomainSearch(search)) = message.opts().get(OptionCode::DomainSearch) else { panic!() };
        (search.len(), answer.len())
    };
    let (few, short) = count(None);
    let (more, long) = count(Some(1500));
    assert!(few < more && short <= 548 && long <= 1472, "{few} {short} {more} {long}");
    assert_eq!(count(Some(0)), (few, short));
}

#[test]
fn names_that_dhcp_cannot_carry_are_refused() {
    for hostname in ["", "a.b", "a b", &"a".repeat(64)] {
        let refused = Offer::new(MAC, hostname, &Dns::default());
        assert!(matches!(refused, Err(Error::Invalid { field: "hostname", .. })), "{hostname:?}");
    }
    let dns = Dns { search: vec!["a".repeat(64)], ..Dns::default() };
    assert!(matches!(Offer::new(MAC, "a", &dns), Err(Error::Invalid { field: "dns.search", .. })));
}

proptest! {
    /// Any octets at all.
    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..MAX_QUESTION)) {
        offer(&[]).answer(&noise);
    }

    /// A good header with random options: gets past the first checks.
    #[test]
    fn random_options_get_a_bounded_answer(
        options in proptest::collection::vec(any::<u8>(), 0..1200),
        tail in proptest::collection::vec((prop_oneof![50u8..62, any::<u8>()], proptest::collection::vec(any::<u8>(), 0..8)), 0..40),
    ) {
        let mut message = bytes(&question(&[]));
        message.truncate(240);
        for (code, data) in &tail {
            message.extend([*code, data.len() as u8]);
            message.extend(data);
        }
        message.extend(&options);
        if let Some(answer) = offer(&["a.example", "b.example"]).answer(&message) {
            prop_assert!(answer.bytes.len() <= 65535 - IP_AND_UDP_HEADERS);
            prop_assert!(Message::decode(&mut Decoder::new(&answer.bytes)).is_ok());
        }
    }

    /// A good question with some octets changed.
    #[test]
    fn damaged_questions_are_survived(
        changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..12),
        length in 0usize..300,
    ) {
        let mut message = bytes(&question(&[Kind(MessageType::Request), Requested(GUEST), Server(GATEWAY)]));
        message.resize(300, 0);
        for (at, value) in changes {
            message[at] = value;
        }
        offer(&[]).answer(&message[..length]);
    }
}
