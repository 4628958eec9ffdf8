//! The DHCP server's socket and task. It is bound to one tap and ends with its handle.

use crate::dhcp::{Answer, MAX_QUESTION, Offer};
use crate::error::{Context, Error};
use crate::tap::TAP_NAME;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket as StdUdpSocket};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Rest after each packet: at most 100 packets a second are looked at, whatever a guest sends. The rest is dropped
/// by the socket's buffer.
const PAUSE: Duration = Duration::from_millis(10);

/// A running DHCP server for one guest. It stops when this is dropped.
#[derive(Debug)]
pub struct DhcpResponder(AbortHandle);

impl Drop for DhcpResponder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens the server's socket in the calling thread's network namespace; the tap must exist.
pub(crate) fn socket() -> Result<StdUdpSocket, Error> {
    let open = || -> io::Result<StdUdpSocket> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), None)?;
        // A predecessor may still be closing its own.
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(TAP_NAME.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT).into())?;
        Ok(socket.into())
    };
    open().context(|| format!("open a DHCP socket on {TAP_NAME}"))
}

/// Starts answering. Needs a tokio runtime with I/O and time.
pub(crate) fn start(socket: StdUdpSocket, offer: Offer) -> Result<DhcpResponder, Error> {
    let socket = UdpSocket::from_std(socket).context(|| "watch the DHCP socket".into())?;
    Ok(DhcpResponder(tokio::spawn(serve(socket, offer)).abort_handle()))
}

async fn serve(socket: UdpSocket, offer: Offer) {
    // One octet more than is read, to tell what was cut off.
    let mut buffer = [0; MAX_QUESTION + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) if length <= MAX_QUESTION => {
                if let Some(answer) = offer.answer(&buffer[..length]) {
                    send(&socket, &answer).await;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "DHCP socket"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn send(socket: &UdpSocket, Answer { bytes, destination }: &Answer) {
    if let Err(error) = socket.send_to(bytes, (*destination, CLIENT_PORT)).await {
        // The guest asks again.
        tracing::debug!(%error, %destination, "DHCP answer not sent");
    }
}
