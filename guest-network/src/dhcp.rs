//! What the DHCP server answers (RFC 2131). Pure: bytes in, bytes out; [`responder`](crate::responder) has the socket.
//!
//! There is one client and one address, so there is no lease to keep: the answer follows from the question.
//! Questions come from an untrusted guest: only the few fields that matter are read, and what is not understood is
//! not answered.

#[cfg(test)]
mod tests;

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
            let problem = format!("{hostname:?} is not a DNS label (1 to 63 letters, digits and hyphens)");
            return Err(Error::Invalid { field: "hostname", problem });
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
        Self { mtu: u16::try_from(mtu).unwrap_or(u16::MAX), ..self }
    }

    /// The answer to a question, if it deserves one.
    pub(crate) fn answer(&self, question: &[u8]) -> Option<Answer> {
        let question = Question::read(question, self.mac)?;
        let kind = question.answer_kind()?;
        let bytes = self.encode(&question, kind)?;
        let bound = question.address == GUEST && kind != MessageType::Nak;
        Some(Answer { bytes, destination: if bound { GUEST } else { Ipv4Addr::BROADCAST } })
    }

    /// Encodes with as many search domains as the client has room for.
    fn encode(&self, question: &Question, kind: MessageType) -> Option<Vec<u8>> {
        let room = usize::from(question.max_packet.max(DEFAULT_MAX_PACKET)) - IP_AND_UDP_HEADERS;
        let attempt = |domains: usize| {
            let mut bytes = Vec::new();
            self.message(question, kind, &self.search[..domains]).encode(&mut Encoder::new(&mut bytes)).ok()?;
            (bytes.len() <= room).then_some(bytes)
        };
        (0..=self.search.len()).rev().find_map(attempt)
    }

    fn message(&self, question: &Question, kind: MessageType, search: &[Name]) -> Message {
        let assigns = matches!(kind, MessageType::Offer | MessageType::Ack) && question.kind != MessageType::Inform;
        let none = Ipv4Addr::UNSPECIFIED;
        let yours = if assigns { GUEST } else { none };
        let client = if kind == MessageType::Ack { question.address } else { none };
        let mut message = Message::new_with_id(question.transaction, client, yours, none, none, &self.mac.0);
        message.set_opcode(Opcode::BootReply).set_flags(question.flags.into());
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
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::from_bits(u32::MAX << (32 - PREFIX_LENGTH))));
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
                OptionCode::MaxMessageSize => question.max_packet = u16::from_be_bytes(data.try_into().ok()?),
                OptionCode::ClientIdentifier if data.len() <= 255 => question.client_identifier = Some(data.to_vec()),
                _ => {}
            }
        }
        Some(Self { kind: kind?, ..question })
    }

    /// RFC 2131 section 4.3. `None`: not for us, or nothing to say.
    fn answer_kind(&self) -> Option<MessageType> {
        let for_us = self.server.is_none_or(|server| server == GATEWAY);
        match self.kind {
            MessageType::Discover => Some(MessageType::Offer),
            MessageType::Inform => Some(MessageType::Ack),
            MessageType::Request if for_us => {
                let wanted = self.requested.unwrap_or(self.address);
                Some(if wanted == GUEST { MessageType::Ack } else { MessageType::Nak })
            }
            _ => None,
        }
    }
}
