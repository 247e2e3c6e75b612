//! The token for requests to another adapter: of a ServiceAccount that may read that adapter's metrics and nothing else.
//!
//! The operator's own token is not used: the receiver of a token can use it, and the operator's allows creating Deployments.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Mutex, time::Instant};

/// The lifetime that is asked for a token, and after how long a new one is fetched.
const HOLDS_FOR: Duration = Duration::from_secs(3600);
const RENEWED_AFTER: Duration = Duration::from_secs(2400);
/// A token that the adapter does not accept is dropped when it is older than this: an adapter that accepts none must not cost a new one each time.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
/// The API server must answer within this.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Where tokens come from.
pub trait Tokens: Send + Sync + 'static {
    /// A token that holds for a while.
    fn token(&self) -> BoxFuture<'_, Result<String, String>>;

    /// The adapter did not accept this token: the ServiceAccount may have been deleted and created again, which makes its old tokens invalid.
    fn not_taken<'a>(&'a self, token: &'a str) -> BoxFuture<'a, ()>;
}

/// Tokens of a ServiceAccount, which the API server issues.
pub struct ServiceAccountTokens {
    accounts: Api<ServiceAccount>,
    name: String,
    newest: Mutex<Option<(Instant, String)>>,
}

impl ServiceAccountTokens {
    /// Of the ServiceAccount `namespace`/`name`.
    pub fn new(client: Client, namespace: &str, name: String) -> Self {
        Self { accounts: Api::namespaced(client, namespace), name, newest: Mutex::default() }
    }

    async fn current(&self) -> Result<String, String> {
        // A request that comes while a token is being fetched waits for that token.
        let mut newest = self.newest.lock().await;
        let held = newest.as_ref().map(|(since, token)| (since.elapsed(), token.clone()));
        if let Some((age, token)) = &held
            && *age < RENEWED_AFTER
        {
            return Ok(token.clone());
        }
        match self.fetch().await {
            Ok(token) => {
                *newest = Some((Instant::now(), token.clone()));
                Ok(token)
            }
            // The token that is held is still valid.
            Err(why) => match held {
                Some((age, token)) if age < HOLDS_FOR => {
                    tracing::warn!("{why}; the last one is used on");
                    Ok(token)
                }
                _ => Err(why),
            },
        }
    }

    async fn give_up(&self, token: &str) {
        let mut newest = self.newest.lock().await;
        newest.take_if(|(since, held)| held == token && since.elapsed() >= GIVEN_UP_AFTER);
    }

    async fn fetch(&self) -> Result<String, String> {
        let failed = |why: String| format!("the API server gave no token of the ServiceAccount {}: {why}", self.name);
        let spec = TokenRequestSpec {
            expiration_seconds: i64::try_from(HOLDS_FOR.as_secs()).ok(),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let parameters = PostParams::default();
        let asked = self.accounts.create_token_request(&self.name, &parameters, &request);
        let answer =
            tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| failed("it did not answer in time".to_owned()))?;
        let token = answer
            .map_err(|error| failed(crate::platform::errors::in_words(&error)))?
            .status
            .and_then(|status| status.token);
        token.filter(|token| !token.is_empty()).ok_or_else(|| failed("its answer holds none".to_owned()))
    }
}

impl Tokens for ServiceAccountTokens {
    fn token(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(self.current())
    }

    fn not_taken<'a>(&'a self, token: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.give_up(token))
    }
}
