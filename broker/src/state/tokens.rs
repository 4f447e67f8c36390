//! Join tokens: single use, expiring, stored hashed.

use tombolo_clusterset::ClusterId;
use tombolo_trust::{Fingerprint, SecretHash, TokenId};

use super::{Entry, Refusal, State, Verdict};
use crate::bounds::{TOKEN_MEMORY, TOKEN_TTL_MAX, TOKENS_MAX};
use crate::command::Reply;

/// A join token as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Who may join with it.
    pub cluster: ClusterId,
    /// Of its secret.
    pub hash: [u8; 32],
    /// End of its life, milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The key that joined with it; None while it is unused.
    pub used_by: Option<Fingerprint>,
}

impl TokenRecord {
    /// When it is forgotten.
    #[must_use]
    pub fn forgotten_ms(&self) -> u64 {
        self.expires_ms.saturating_add(millis(TOKEN_MEMORY))
    }
}

impl State {
    /// The token that `cluster` presents, whatever has become of it: who gets it holds its secret.
    ///
    /// # Errors
    /// Unknown, wrong secret, wrong cluster: in this order, so that only who holds the secret learns anything about a
    /// token.
    pub fn check_token_holder(
        &self,
        id: TokenId,
        hash: &[u8; 32],
        cluster: &ClusterId,
    ) -> Result<&TokenRecord, Refusal> {
        let token = self
            .tokens
            .get(&id)
            .ok_or_else(|| Refusal::TokenUnknown(id.to_string()))?;
        if !SecretHash::from_bytes(token.hash).matches(&SecretHash::from_bytes(*hash)) {
            return Err(Refusal::TokenWrongSecret(id.to_string()));
        }
        if token.cluster != *cluster {
            let (made_for, asked) = (token.cluster.clone(), cluster.clone());
            return Err(Refusal::TokenWrongCluster {
                token: id.to_string(),
                made_for,
                asked,
            });
        }
        Ok(token)
    }

    /// The token that `cluster` presents, when it may join with it now. `key` is the key it asks a certificate for: the
    /// same key may ask again, since an answer can get lost.
    ///
    /// # Errors
    /// Those of [`State::check_token_holder`], then used, expired.
    pub fn check_token(
        &self,
        id: TokenId,
        hash: &[u8; 32],
        cluster: &ClusterId,
        key: Fingerprint,
        now_ms: u64,
    ) -> Result<&TokenRecord, Refusal> {
        let token = self.check_token_holder(id, hash, cluster)?;
        match token.used_by {
            Some(by) if by == key => return Ok(token),
            Some(_) => return Err(Refusal::TokenUsed(id.to_string())),
            None => {}
        }
        if token.expires_ms <= now_ms {
            return Err(Refusal::TokenExpired(
                id.to_string(),
                (now_ms - token.expires_ms) / 1000,
            ));
        }
        Ok(token)
    }
}

impl Entry<'_> {
    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        hash: [u8; 32],
        cluster: ClusterId,
        ttl_ms: u64,
    ) -> Verdict {
        if !(1_000..=millis(TOKEN_TTL_MAX)).contains(&ttl_ms) {
            return Err(Refusal::TokenTtl(ttl_ms));
        }
        if let Some(known) = self.state.tokens.get(&id) {
            // The same command again, after an answer that got lost.
            let same = known.hash == hash && known.cluster == cluster;
            return if same {
                Ok(Reply::Done)
            } else {
                Err(Refusal::TokenExists(id.to_string()))
            };
        }
        let now = self.state.clock_ms;
        let outstanding = self
            .state
            .tokens
            .values()
            .filter(|token| token.used_by.is_none() && token.expires_ms > now);
        if outstanding.count() >= TOKENS_MAX {
            return Err(Refusal::TooManyTokens);
        }
        let expires_ms = now.saturating_add(ttl_ms);
        self.state.tokens.insert(
            id,
            TokenRecord {
                cluster,
                hash,
                expires_ms,
                used_by: None,
            },
        );
        Ok(Reply::Done)
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Verdict {
        self.state
            .tokens
            .remove(&id)
            .map(|_| Reply::Done)
            .ok_or_else(|| Refusal::TokenUnknown(id.to_string()))
    }

    pub(super) fn expire_tokens(&mut self) {
        let now = self.state.clock_ms;
        self.state.tokens.retain(|_, token| token.forgotten_ms() > now);
    }
}

/// Milliseconds of a constant, which all fit.
pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
