//! What the DHCP server answers (RFC 2131). Pure: bytes in, bytes out; [`responder`](crate::responder) has the socket.
//!
//! There is one client and one address, so there is no lease to keep: the answer follows from the question.
//! Questions come from an untrusted guest: only the few fields that matter are read, and what is not understood is
//! not answered.

use crate::config::{Dns, GATEWAY, GUEST, Mac, PREFIX_LENGTH};
use crate::error::Error;
use dhcproto::v4::borrowed;
use dhcproto::v4::{DhcpOption, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Encodable, Encoder, Name};
use std::net::Ipv4Addr;

/// Longest UDP payload read. A question is rarely longer than 600 octets.
pub(crate) const MAX_QUESTION: usize = 1500;
/// What a client takes if it does not say (RFC 2131 section 2), as an IP packet.
const DEFAULT_MAX_PACKET: u16 = 576;
/// Headers of IPv4 and UDP, which a client's maximum includes.
const IP_AND_UDP_HEADERS: usize = 28;
/// Ethernet's.
const DEFAULT_MTU: u16 = 1500;
/// A lease that never ends (RFC 2131 section 3.3).
const FOREVER: u32 = u32::MAX;
/// At most this many DNS servers are offered; resolvers use three.
const MAX_DNS_SERVERS: usize = 8;

/// All that the guest is told.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    mac: Mac,
    mtu: u16,
    hostname: String,
    servers: Vec<Ipv4Addr>,
    search: Vec<Name>,
}

/// An answer and where to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// The guest's address if it has it already, otherwise the broadcast address.
    pub(crate) destination: Ipv4Addr,
}

impl Offer {
    /// Checks names while there is somebody to tell.
    pub(crate) fn new(mac: Mac, hostname: &str, dns: &Dns) -> Result<Self, Error> {
        let label = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if hostname.is_empty() || hostname.len() > 63 || !hostname.bytes().all(label) {
            let problem =
                format!("{hostname:?} is not a DNS label (1 to 63 letters, digits and hyphens)");
            return Err(Error::Invalid {
                field: "hostname",
                problem,
            });
        }
        let parse = |domain: &String| {
            Name::from_ascii(domain).map_err(|error| Error::Invalid {
                field: "dns.search",
                problem: format!("{domain:?} is not a domain name: {error}"),
            })
        };
        Ok(Self {
            mac,
            mtu: DEFAULT_MTU,
            hostname: hostname.to_owned(),
            servers: dns.servers.iter().copied().take(MAX_DNS_SERVERS).collect(),
            search: dns.search.iter().map(parse).collect::<Result<_, _>>()?,
        })
    }

    /// Offers this MTU, which is in bytes.
    pub(crate) fn with_mtu(self, mtu: u32) -> Self {
        Self {
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            ..self
        }
    }

    /// The answer to a question, if it deserves one.
    pub(crate) fn answer(&self, question: &[u8]) -> Option<Answer> {
        let question = Question::read(question, self.mac)?;
        let kind = question.answer_kind()?;
        let bytes = self.encode(&question, kind)?;
        let bound = question.address == GUEST && kind != MessageType::Nak;
        Some(Answer {
            bytes,
            destination: if bound { GUEST } else { Ipv4Addr::BROADCAST },
        })
    }

    /// Encodes with as many search domains as the client has room for.
    fn encode(&self, question: &Question, kind: MessageType) -> Option<Vec<u8>> {
        let room = usize::from(question.max_packet.max(DEFAULT_MAX_PACKET)) - IP_AND_UDP_HEADERS;
        let attempt = |domains: usize| {
            let mut bytes = Vec::new();
            self.message(question, kind, &self.search[..domains])
                .encode(&mut Encoder::new(&mut bytes))
                .ok()?;
            (bytes.len() <= room).then_some(bytes)
        };
        (0..=self.search.len()).rev().find_map(attempt)
    }

    fn message(&self, question: &Question, kind: MessageType, search: &[Name]) -> Message {
        let assigns = matches!(kind, MessageType::Offer | MessageType::Ack)
            && question.kind != MessageType::Inform;
        let none = Ipv4Addr::UNSPECIFIED;
        let yours = if assigns { GUEST } else { none };
        let client = if kind == MessageType::Ack {
            question.address
        } else {
            none
        };
        let mut message =
            Message::new_with_id(question.transaction, client, yours, none, none, &self.mac.0);
        message
            .set_opcode(Opcode::BootReply)
            .set_flags(question.flags.into());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(GATEWAY));
        if let Some(identifier) = &question.client_identifier {
            // RFC 6842: returned as it came.
            options.insert(DhcpOption::ClientIdentifier(identifier.clone()));
        }
        if kind == MessageType::Nak {
            return message;
        }
        if assigns {
            options.insert(DhcpOption::AddressLeaseTime(FOREVER));
        }
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::from_bits(
            u32::MAX << (32 - PREFIX_LENGTH),
        )));
        options.insert(DhcpOption::Router(vec![GATEWAY]));
        options.insert(DhcpOption::InterfaceMtu(self.mtu));
        options.insert(DhcpOption::Hostname(self.hostname.clone()));
        if !self.servers.is_empty() {
            options.insert(DhcpOption::DomainNameServer(self.servers.clone()));
        }
        if !search.is_empty() {
            options.insert(DhcpOption::DomainSearch(search.to_vec()));
        }
        message
    }
}

/// The parts of a question that the answer depends on.
struct Question {
    kind: MessageType,
    transaction: u32,
    flags: u16,
    /// The address the client says it has (`ciaddr`).
    address: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// Longest IP packet the client takes.
    max_packet: u16,
    client_identifier: Option<Vec<u8>>,
}

impl Question {
    /// Reads a well-formed question of the client with this MAC that came directly.
    fn read(bytes: &[u8], mac: Mac) -> Option<Self> {
        let message = borrowed::Message::new(bytes).ok()?;
        let ours = message.opcode() == Opcode::BootRequest
            && message.htype() == HType::Eth
            && message.giaddr().is_unspecified()
            // The length first: `chaddr` trusts it.
            && usize::from(message.hlen()) == mac.0.len()
            && message.chaddr() == mac.0;
        if !ours {
            return None;
        }
        let mut kind = None;
        let mut question = Self {
            kind: MessageType::Discover,
            transaction: message.xid(),
            flags: message.flags().into(),
            address: message.ciaddr(),
            requested: None,
            server: None,
            max_packet: DEFAULT_MAX_PACKET,
            client_identifier: None,
        };
        for option in message.opts() {
            let data = option.data();
            let address = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
            match option.code() {
                OptionCode::MessageType => kind = Some(MessageType::from(*data.first()?)),
                OptionCode::RequestedIpAddress => question.requested = Some(address()?),
                OptionCode::ServerIdentifier => question.server = Some(address()?),
                OptionCode::MaxMessageSize => {
                    question.max_packet = u16::from_be_bytes(data.try_into().ok()?)
                }
                OptionCode::ClientIdentifier if data.len() <= 255 => {
                    question.client_identifier = Some(data.to_vec())
                }
                _ => {}
            }
        }
        Some(Self {
            kind: kind?,
            ..question
        })
    }

    /// RFC 2131 section 4.3. `None`: not for us, or nothing to say.
    fn answer_kind(&self) -> Option<MessageType> {
        let for_us = self.server.is_none_or(|server| server == GATEWAY);
        match self.kind {
            MessageType::Discover => Some(MessageType::Offer),
            MessageType::Inform => Some(MessageType::Ack),
            MessageType::Request if for_us => {
                let wanted = self.requested.unwrap_or(self.address);
                Some(if wanted == GUEST {
                    MessageType::Ack
                } else {
                    MessageType::Nak
                })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::{Decodable, Decoder};
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn offer(search: &[&str]) -> Offer {
        let servers = vec![Ipv4Addr::new(10, 96, 0, 10)];
        let dns = Dns {
            servers,
            search: search.iter().map(|domain| (*domain).to_owned()).collect(),
        };
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
        Some((
            Message::decode(&mut Decoder::new(&bytes)).unwrap(),
            destination,
        ))
    }

    fn kind(answer: Option<(Message, Ipv4Addr)>) -> Option<MessageType> {
        answer?.0.opts().msg_type()
    }

    use DhcpOption::{
        MessageType as Kind, RequestedIpAddress as Requested, ServerIdentifier as Server,
    };

    #[test]
    fn discover_is_offered_everything() {
        let (answer, destination) = ask(
            &offer(&["ns.svc.cluster.local"]),
            &question(&[Kind(MessageType::Discover)]),
        )
        .unwrap();
        assert_eq!(destination, Ipv4Addr::BROADCAST);
        assert_eq!(
            (answer.opcode(), answer.xid(), answer.yiaddr()),
            (Opcode::BootReply, 7, GUEST)
        );
        let get = |code| answer.opts().get(code).unwrap().clone();
        assert_eq!(answer.opts().msg_type(), Some(MessageType::Offer));
        assert_eq!(get(OptionCode::ServerIdentifier), Server(GATEWAY));
        assert_eq!(
            get(OptionCode::SubnetMask),
            DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0))
        );
        assert_eq!(get(OptionCode::Router), DhcpOption::Router(vec![GATEWAY]));
        assert_eq!(
            get(OptionCode::InterfaceMtu),
            DhcpOption::InterfaceMtu(1450)
        );
        assert_eq!(
            get(OptionCode::AddressLeaseTime),
            DhcpOption::AddressLeaseTime(FOREVER)
        );
        assert_eq!(
            get(OptionCode::Hostname),
            DhcpOption::Hostname("vse-0".into())
        );
        let servers = vec![Ipv4Addr::new(10, 96, 0, 10)];
        assert_eq!(
            get(OptionCode::DomainNameServer),
            DhcpOption::DomainNameServer(servers)
        );
        let DhcpOption::DomainSearch(search) = get(OptionCode::DomainSearch) else {
            panic!()
        };
        assert_eq!(
            search[0].to_utf8().trim_end_matches('.'),
            "ns.svc.cluster.local"
        );
    }

    #[test]
    fn request_is_acknowledged_only_for_the_guests_address() {
        let offer = offer(&[]);
        let request = |options: &[DhcpOption]| {
            let options: Vec<_> = [Kind(MessageType::Request)]
                .iter()
                .chain(options)
                .cloned()
                .collect();
            question(&options)
        };
        let other = Ipv4Addr::new(192, 168, 0, 9);
        assert_eq!(
            kind(ask(&offer, &request(&[Requested(GUEST), Server(GATEWAY)]))),
            Some(MessageType::Ack)
        );
        assert_eq!(
            kind(ask(&offer, &request(&[Requested(GUEST)]))),
            Some(MessageType::Ack)
        );
        assert_eq!(
            kind(ask(&offer, &request(&[Requested(other)]))),
            Some(MessageType::Nak)
        );
        assert_eq!(
            kind(ask(&offer, &request(&[Requested(GUEST), Server(other)]))),
            None
        );
        assert_eq!(kind(ask(&offer, &request(&[]))), Some(MessageType::Nak));
    }

    #[test]
    fn renewal_is_answered_where_the_client_is() {
        let mut renewal = question(&[Kind(MessageType::Request)]);
        renewal.set_ciaddr(GUEST);
        let (answer, destination) = ask(&offer(&[]), &renewal).unwrap();
        assert_eq!(
            (destination, answer.ciaddr(), answer.yiaddr()),
            (GUEST, GUEST, GUEST)
        );
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
        for message in [
            stranger,
            relayed,
            reply,
            question(&[]),
            question(&[Kind(MessageType::Release)]),
        ] {
            assert_eq!(ask(&offer(&[]), &message), None);
        }
    }

    #[test]
    fn search_domains_are_shortened_to_what_the_client_takes() {
        let domains: Vec<String> = (0..32)
            .map(|i| format!("domain-{i}.a-rather-long-name-{i}.example{i}"))
            .collect();
        let domains: Vec<&str> = domains.iter().map(String::as_str).collect();
        let count = |max: Option<u16>| {
            let max = max.map(DhcpOption::MaxMessageSize);
            let options: Vec<_> = [Kind(MessageType::Discover)]
                .into_iter()
                .chain(max)
                .collect();
            let answer = offer(&domains)
                .answer(&bytes(&question(&options)))
                .unwrap()
                .bytes;
            let message = Message::decode(&mut Decoder::new(&answer)).unwrap();
            let Some(DhcpOption::DomainSearch(search)) =
                message.opts().get(OptionCode::DomainSearch)
            else {
                panic!()
            };
            (search.len(), answer.len())
        };
        let (few, short) = count(None);
        let (more, long) = count(Some(1500));
        assert!(
            few < more && short <= 548 && long <= 1472,
            "{few} {short} {more} {long}"
        );
        assert_eq!(count(Some(0)), (few, short));
    }

    #[test]
    fn names_that_dhcp_cannot_carry_are_refused() {
        for hostname in ["", "a.b", "a b", &"a".repeat(64)] {
            let refused = Offer::new(MAC, hostname, &Dns::default());
            assert!(
                matches!(
                    refused,
                    Err(Error::Invalid {
                        field: "hostname",
                        ..
                    })
                ),
                "{hostname:?}"
            );
        }
        let dns = Dns {
            search: vec!["a".repeat(64)],
            ..Dns::default()
        };
        assert!(matches!(
            Offer::new(MAC, "a", &dns),
            Err(Error::Invalid {
                field: "dns.search",
                ..
            })
        ));
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
}
