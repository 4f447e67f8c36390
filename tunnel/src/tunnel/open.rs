//! Opens flows.

use std::sync::Arc;

use tombolo_clusterset::ClusterId;
use tombolo_clusterset::endpoint::Protocol;
use tombolo_wire::{frame, v1};

use super::Tunnel;
use crate::flow::{Flow, Running};
use crate::header::{self, FlowHeader, HEADER_MAX, HeaderError};
use crate::metrics::Direction;
use crate::reply::{DETAIL_MAX, Refusal, Reply};
use crate::shell::halves::FrameReadError;
use crate::udp::UdpFlow;

/// Longest answer, bytes: a refusal with its detail.
const REPLY_MAX: usize = DETAIL_MAX + 64;

/// Why a tunnel could not open a flow. In every case no byte of it has reached a backend: it may be tried elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The other side answered no.
    #[error("refused by {cluster}: {refusal}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    Refused {
        /// Who refused.
        cluster: ClusterId,
        /// Why.
        refusal: Refusal,
        /// One line of the other side's; may be empty.
        detail: String,
    },
    /// One of the sides has asked for no new flows: dial another tunnel.
    #[error("the tunnel to {cluster} is going away; open the flow in a new one")]
    GoingAway {
        /// The peer's cluster.
        cluster: ClusterId,
    },
    /// The tunnel is closed, or closed meanwhile.
    #[error("the tunnel to {cluster} is closed: {reason}")]
    Closed {
        /// The peer's cluster.
        cluster: ClusterId,
        /// Why.
        reason: String,
    },
    /// The peer takes no flows over a tunnel that it dialled.
    #[error("{cluster} takes no flows over this tunnel, which it dialled itself")]
    NotReversible {
        /// The peer's cluster.
        cluster: ClusterId,
    },
    /// The header cannot be sent.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The peer does not keep to the protocol.
    #[error("{cluster} broke the protocol: {reason}")]
    Protocol {
        /// The peer's cluster.
        cluster: ClusterId,
        /// How.
        reason: String,
    },
}

impl Tunnel {
    /// Opens a TCP flow: resolves when the far side is *connected* or has refused. There is no time limit here: the caller
    /// knows when it has a better candidate. Dropping the future resets the stream, and the far side abandons the flow.
    ///
    /// # Errors
    /// [`OpenError`]; in each case no byte of the flow has reached a backend.
    pub async fn open(&self, header: &FlowHeader) -> Result<Flow, OpenError> {
        let (flow, _) = self.begin(header, Protocol::Tcp).await?;
        Ok(flow)
    }

    /// Opens a UDP flow; as [`Tunnel::open`].
    ///
    /// # Errors
    /// As [`Tunnel::open`].
    pub async fn open_udp(&self, header: &FlowHeader) -> Result<UdpFlow, OpenError> {
        let (flow, id) = self.begin(header, Protocol::Udp).await?;
        let lane = self
            .0
            .datagrams
            .join(id)
            .ok_or_else(|| self.broke(format!("UDP flow id {id} is not free")))?;
        Ok(UdpFlow::new(self.clone(), flow, lane))
    }

    async fn begin(&self, header: &FlowHeader, protocol: Protocol) -> Result<(Flow, u64), OpenError> {
        if header.protocol != protocol {
            let reason = format!("{} cannot be opened as {protocol}", header.protocol);
            return Err(HeaderError::Field {
                field: "protocol",
                reason,
            }
            .into());
        }
        let wire = header.to_wire();
        let len = prost::Message::encoded_len(&wire);
        if len > HEADER_MAX {
            return Err(HeaderError::TooLong { len }.into());
        }
        self.check_usable()?;
        let running = Running::new(Arc::clone(&self.0), Direction::Outbound);
        let failed = |error: &dyn std::fmt::Display| self.broken_off(error);
        let (send, recv) = self
            .0
            .carrier
            .open(&header::authority(header))
            .await
            .map_err(|error| failed(&error))?;
        // From here on, dropping the flow resets the stream.
        let mut flow = Flow { send, recv, running };
        let frame = frame::encode(&wire).map_err(|_| HeaderError::TooLong { len })?;
        flow.send.write(frame).await.map_err(|error| failed(&error))?;
        let reply: v1::FlowReply = match flow.recv.frame(REPLY_MAX).await {
            Ok(reply) => reply,
            Err(FrameReadError::Io(error)) => return Err(failed(&error)),
            Err(error) => return Err(self.broke(error.to_string())),
        };
        match Reply::from_wire(reply) {
            Some(Reply::Connected { datagram_flow }) => Ok((flow, datagram_flow)),
            Some(Reply::Refused { refusal, detail }) => {
                // The far side has ended its direction; so do we, and nothing is left to reset.
                if let Err(error) = flow.send.finish() {
                    tracing::trace!(%error, "a refused flow was over already");
                }
                Err(OpenError::Refused {
                    cluster: self.cluster().clone(),
                    refusal,
                    detail,
                })
            }
            None => Err(self.broke("an answer without content".to_owned())),
        }
    }

    fn check_usable(&self) -> Result<(), OpenError> {
        let cluster = || self.cluster().clone();
        if let Some(reason) = self.close_reason() {
            return Err(OpenError::Closed {
                cluster: cluster(),
                reason: reason.to_string(),
            });
        }
        if self.0.is_leaving() {
            return Err(OpenError::GoingAway { cluster: cluster() });
        }
        if !self.takes_flows() {
            return Err(OpenError::NotReversible { cluster: cluster() });
        }
        Ok(())
    }

    fn broken_off(&self, error: &dyn std::fmt::Display) -> OpenError {
        let reason = self
            .close_reason()
            .map_or_else(|| error.to_string(), |reason| reason.to_string());
        OpenError::Closed {
            cluster: self.cluster().clone(),
            reason,
        }
    }

    fn broke(&self, reason: String) -> OpenError {
        OpenError::Protocol {
            cluster: self.cluster().clone(),
            reason,
        }
    }
}
