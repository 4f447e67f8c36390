//! A DNS question to one server: EDNS(0) over UDP, and once more over TCP when the answer is truncated (RFC 1035 §4.2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// A server of this machine that has not answered by then has not heard.
const UDP_TIMEOUT: Duration = Duration::from_secs(1);
/// Questions over UDP before giving up: a datagram may be lost.
const UDP_TRIES: u32 = 3;
/// Connection and answer over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// UDP payload that we take (DNS flag day 2020: no fragmentation).
const UDP_PAYLOAD: u16 = 1232;

/// An answer with how it came.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) message: Message,
    /// `udp`, or `tcp` after a truncated answer.
    pub(crate) transport: &'static str,
    pub(crate) took: Duration,
}

/// Asks `server`.
pub(crate) async fn ask(server: SocketAddr, name: &Name, record_type: RecordType) -> Result<Reply> {
    let began = Instant::now();
    let question = question(name, record_type);
    let packet = question.to_vec().context("the question cannot be encoded")?;
    let mut last = None;
    for _ in 0..UDP_TRIES {
        match timeout(UDP_TIMEOUT, over_udp(server, &packet, &question)).await {
            Ok(Ok(message)) if message.metadata.truncation => {
                let answer = timeout(TCP_TIMEOUT, over_tcp(server, &packet, &question)).await;
                let message = answer
                    .with_context(|| format!("{server} truncated its answer and is silent over TCP"))??;
                return Ok(Reply {
                    message,
                    transport: "tcp",
                    took: began.elapsed(),
                });
            }
            Ok(Ok(message)) => {
                return Ok(Reply {
                    message,
                    transport: "udp",
                    took: began.elapsed(),
                });
            }
            Ok(Err(error)) => last = Some(error),
            Err(_) => {}
        }
    }
    match last {
        Some(error) => Err(error.context(format!("the DNS server at {server} does not answer"))),
        None => bail!(
            "the DNS server at {server} does not answer within {} s; see `tombolo status`",
            (UDP_TIMEOUT * UDP_TRIES).as_secs()
        ),
    }
}

/// A question with a random id, recursion not desired: the server is the authority.
fn question(name: &Name, record_type: RecordType) -> Message {
    let mut question = Message::query();
    question.add_query(Query::query(name.clone(), record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    question.set_edns(edns);
    question
}

async fn over_udp(server: SocketAddr, packet: &[u8], question: &Message) -> Result<Message> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))
        .await
        .context("cannot open a UDP socket")?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = [0; UDP_PAYLOAD as usize];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // What is no answer to this question may be a late or forged one: wait on.
        if let Ok(message) = answer_to(question, &buffer[..len]) {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, packet: &[u8], question: &Message) -> Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(packet.len()).context("the question is too long")?;
    stream
        .write_all(&[&len.to_be_bytes()[..], packet].concat())
        .await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    answer_to(question, &answer)
}

fn answer_to(question: &Message, packet: &[u8]) -> Result<Message> {
    let message = Message::from_vec(packet).context("the answer makes no sense")?;
    let ours =
        message.metadata.id == question.metadata.id && message.metadata.message_type == MessageType::Response;
    ensure!(ours, "the answer is to another question");
    Ok(message)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    use tokio::net::TcpListener;

    use super::*;

    fn answer(packet: &[u8], truncated: bool) -> Vec<u8> {
        let mut message = Message::from_vec(packet).expect("a question").into_response();
        message.metadata.truncation = truncated;
        message.metadata.response_code = ResponseCode::NoError;
        if !truncated {
            let name = message.queries[0].name.clone();
            message.add_answer(Record::from_rdata(name, 5, RData::A(A::new(127, 11, 64, 1))));
        }
        message.to_vec().expect("an answer")
    }

    /// A server whose UDP answers come after a datagram of nonsense, and are truncated.
    #[tokio::test]
    async fn follows_a_truncated_answer_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let server = listener.local_addr().expect("an address");
        let socket = UdpSocket::bind(server).await.expect("a socket");
        let serve = async {
            let mut buffer = [0; 512];
            let (len, client) = socket.recv_from(&mut buffer).await.expect("a question");
            socket.send_to(b"nonsense", client).await.expect("sent");
            socket
                .send_to(&answer(&buffer[..len], true), client)
                .await
                .expect("sent");
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let len = stream.read_u16().await.expect("a length");
            let mut question = vec![0; usize::from(len)];
            stream.read_exact(&mut question).await.expect("a question");
            let answer = answer(&question, false);
            stream.write_u16(answer.len() as u16).await.expect("sent");
            stream.write_all(&answer).await.expect("sent");
        };
        let name = Name::from_ascii("checkout.shop.svc.clusterset.local.").expect("a name");
        let (reply, ()) = tokio::join!(ask(server, &name, RecordType::A), serve);
        let reply = reply.expect("an answer");
        assert_eq!((reply.transport, reply.message.answers.len()), ("tcp", 1));
        assert_eq!(reply.message.metadata.response_code, ResponseCode::NoError);
    }

    #[tokio::test]
    async fn a_silent_server_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let server = socket.local_addr().expect("an address");
        let error = ask(server, &Name::root(), RecordType::A)
            .await
            .expect_err("silence");
        assert!(
            error.to_string().contains(&format!("{server} does not answer")),
            "{error}"
        );
    }
}
