//! Clients as a user has them: dig, a TCP connection, a datagram.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// Long enough for a failover, short enough that a test fails and does not hang.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What dig printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, …; `TIMEOUT` when no server answered.
    pub rcode: String,
    /// The answer section: the data of each record, sorted.
    pub records: Vec<String>,
}

impl Answer {
    /// The records that are addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.records
            .iter()
            .filter_map(|record| record.parse().ok())
            .collect()
    }
}

/// Asks `server` with dig; `options` such as `+tcp` come first.
///
/// # Panics
/// When dig is not installed (`make tools` installs it).
#[must_use]
pub fn dig(server: SocketAddr, name: &str, record_type: &str, options: &[&str]) -> Answer {
    let output = Command::new("dig")
        .args([
            &format!("@{}", server.ip()),
            "-p",
            &server.port().to_string(),
            "+time=2",
            "+tries=1",
        ])
        .args(options)
        .args(["-t", record_type, name])
        .output()
        .expect("dig runs; `make tools` installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next());
    let mut records = Vec::new();
    let mut in_answer = false;
    for line in text.lines() {
        if line.starts_with(";; ANSWER SECTION") {
            in_answer = true;
        } else if line.is_empty() || line.starts_with(";;") {
            in_answer = false;
        } else if in_answer {
            let fields: Vec<&str> = line.split_whitespace().collect();
            records.push(fields.get(4..).unwrap_or_default().join(" "));
        }
    }
    records.sort();
    Answer {
        rcode: status.unwrap_or("TIMEOUT").to_owned(),
        records,
    }
}

/// GET / on one new connection; the body.
///
/// # Errors
/// As the socket says.
pub fn http_get(address: SocketAddr) -> io::Result<String> {
    http_get_within(address, TIMEOUT)
}

/// [`http_get`] with a time limit of its own.
///
/// # Errors
/// As the socket says.
pub fn http_get_within(address: SocketAddr, limit: Duration) -> io::Result<String> {
    let request = "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    let answer = tcp_bytes(address, request.as_bytes(), limit)?;
    let text = String::from_utf8_lossy(&answer);
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.trim().to_owned()),
        _ => Err(io::Error::other(format!("no HTTP answer: {text:?}"))),
    }
}

/// Sends `bytes` on one new connection and reads until the other side ends.
///
/// # Errors
/// As the socket says.
pub fn tcp_bytes(address: SocketAddr, bytes: &[u8], limit: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// One datagram there and one back, from an address of the same host.
///
/// # Errors
/// As the socket says.
pub fn udp_exchange(address: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send_to(payload, address)?;
    let mut buffer = vec![0; 65_535];
    let (len, from) = socket.recv_from(&mut buffer)?;
    if from != address {
        return Err(io::Error::other(format!(
            "the answer came from {from}, not from {address}"
        )));
    }
    buffer.truncate(len);
    Ok(buffer)
}
