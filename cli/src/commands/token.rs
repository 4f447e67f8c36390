//! `tombolo token`.

use anyhow::Result;
use serde::Serialize;
use tombolo_wire::v1;

use crate::args::{Target, Token};
use crate::operator::{Operators, refusal};
use crate::output::{print, print_line, table};

#[derive(Debug, Serialize)]
struct Created {
    token: String,
    id: String,
    cluster: String,
    expires_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    cluster: String,
    expires_unix_ms: u64,
    used: bool,
}

pub(crate) async fn run(target: &Target, command: Token) -> Result<()> {
    let mut client = Operators::find(target)?.connect().await?;
    match command {
        Token::Create { cluster, ttl } => {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            let request = v1::CreateTokenRequest {
                cluster: cluster.to_string(),
                ttl_ms,
            };
            let reply = client
                .create_token(request)
                .await
                .map_err(|status| refusal(&status))?
                .into_inner();
            let created = Created {
                token: reply.token,
                id: reply.token_id,
                cluster: cluster.to_string(),
                expires_unix_ms: reply.expires_unix_ms,
            };
            // Only the token on standard output, so that `$(tombolo token create …)` works.
            print(target.output, "token", &created, |created| created.token.clone())
        }
        Token::List => {
            let reply = client
                .list_tokens(v1::ListTokensRequest {})
                .await
                .map_err(|status| refusal(&status))?;
            let tokens: Vec<Listed> = reply
                .into_inner()
                .tokens
                .into_iter()
                .map(|token| Listed {
                    id: token.token_id,
                    cluster: token.cluster,
                    expires_unix_ms: token.expires_unix_ms,
                    used: token.used,
                })
                .collect();
            print(target.output, "tokens", &tokens, |tokens| {
                let rows = tokens.iter().map(|token| {
                    let used = if token.used { "used" } else { "open" };
                    [
                        token.id.clone(),
                        token.cluster.clone(),
                        crate::output::when(token.expires_unix_ms),
                        used.into(),
                    ]
                });
                table(["ID", "CLUSTER", "EXPIRES", "STATE"], rows)
            })
        }
        Token::Revoke { id } => {
            let request = v1::RevokeTokenRequest { token_id: id.clone() };
            client
                .revoke_token(request)
                .await
                .map_err(|status| refusal(&status))?;
            print_line(&format!("token {id} is revoked"))
        }
    }
}
