//! Two clusters on loopback, with real certificates: every case on both transports.

mod flows;
mod hostile;
mod identity;
mod lifecycle;
mod site;
mod udp;

/// Runs each case once per transport, in a test of its own, within a time that only a hang exceeds.
macro_rules! on_both_transports {
    ($($case:ident),+ $(,)?) => {$(
        mod $case {
            use crate::tests::site::{run, PATIENCE};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn quic() {
                run(PATIENCE, super::$case(crate::Transport::Quic)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn h2() {
                run(PATIENCE, super::$case(crate::Transport::H2)).await;
            }
        }
    )+};
}
pub(crate) use on_both_transports;
