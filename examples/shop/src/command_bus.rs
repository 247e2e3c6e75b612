//! Commands by their names: each has a type, rules that a request is checked by, and one handler, which decides in a transaction what happened.
//!
//! ```text
//! let bus = CommandBus::default().with::<PlaceOrder, _>(Checkout)?.with::<AddProduct, _>(Catalogue)?;
//! bus.dispatch(&transaction, "PlaceOrder", &body).await?;
//! ```
//!
//! The bus neither commits nor tries again: see [`crate::checkout`] for what is around it.

use std::{collections::HashMap, sync::Arc};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;
use tokio_postgres::Transaction;

use crate::event_store::{Appended, StoreError};

/// What is asked for.
pub trait Command: DeserializeOwned + Send + Sync + 'static {
    /// What requests call it.
    const NAME: &'static str;

    /// Checks what needs no look at any event.
    ///
    /// # Errors
    /// A sentence for whoever asked, which names the field.
    fn validate(&self) -> Result<(), String>;
}

/// Does what a command asks for.
pub trait Handler<C: Command>: Send + Sync + 'static {
    /// Reads what happened, decides, and appends events in this transaction.
    fn handle(
        &self,
        command: &C,
        transaction: &Transaction<'_>,
    ) -> impl Future<Output = Result<Decision, StoreError>> + Send;
}

/// What a handler decided.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "decision", rename_all = "camelCase")]
pub enum Decision {
    /// It is done.
    Accepted {
        /// The last event's: a read model that has it shows what was done.
        position: i64,
    },
    /// The shop's rules forbid it. Nothing has changed.
    Refused {
        /// For whoever asked.
        reason: String,
    },
}

impl Decision {
    /// Refused, for this reason.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}

impl From<Appended> for Decision {
    fn from(appended: Appended) -> Self {
        Self::Accepted { position: appended.position }
    }
}

/// Why a command was not decided about.
#[derive(Debug, Error)]
pub enum CommandError {
    /// No command has this name.
    #[error("there is no command {0}")]
    Unknown(String),
    /// The request is not what the command's type says, or breaks its rules.
    #[error("{name}: {reason}")]
    Invalid {
        /// The command.
        name: &'static str,
        /// What is wrong, for whoever asked.
        reason: String,
    },
    /// The handler could not read or append. [`StoreError::Conflict`]: try again from the beginning.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A second handler was given for one command.
#[derive(Debug, Error)]
#[error("the command {0} has a handler already")]
pub struct SecondHandler(&'static str);

/// A handler whose command's type is known only to itself.
trait AnyHandler: Send + Sync {
    fn handle<'a>(
        &'a self,
        body: &'a Value,
        transaction: &'a Transaction<'_>,
    ) -> BoxFuture<'a, Result<Decision, CommandError>>;
}

struct Typed<C, H> {
    handler: H,
    command: std::marker::PhantomData<fn() -> C>,
}

impl<C: Command, H: Handler<C>> AnyHandler for Typed<C, H> {
    fn handle<'a>(
        &'a self,
        body: &'a Value,
        transaction: &'a Transaction<'_>,
    ) -> BoxFuture<'a, Result<Decision, CommandError>> {
        Box::pin(async move {
            let invalid = |reason| CommandError::Invalid { name: C::NAME, reason };
            let command = C::deserialize(body).map_err(|error| invalid(error.to_string()))?;
            command.validate().map_err(invalid)?;
            Ok(self.handler.handle(&command, transaction).await?)
        })
    }
}

/// All commands that can be asked for.
#[derive(Clone, Default)]
pub struct CommandBus {
    handlers: HashMap<&'static str, Arc<dyn AnyHandler>>,
}

impl CommandBus {
    /// The same with one command more.
    ///
    /// # Errors
    /// When the command has a handler already.
    pub fn with<C: Command, H: Handler<C>>(mut self, handler: H) -> Result<Self, SecondHandler> {
        let typed = Typed::<C, H> { handler, command: std::marker::PhantomData };
        match self.handlers.insert(C::NAME, Arc::new(typed)) {
            None => Ok(self),
            Some(_) => Err(SecondHandler(C::NAME)),
        }
    }

    /// Has the command of this name decide about a request.
    ///
    /// # Errors
    /// When there is no such command, the request is none, or the event store cannot be read or appended to.
    pub async fn dispatch(
        &self,
        transaction: &Transaction<'_>,
        name: &str,
        body: &Value,
    ) -> Result<Decision, CommandError> {
        let handler = self.handlers.get(name).ok_or_else(|| CommandError::Unknown(name.to_owned()))?;
        handler.handle(body, transaction).await
    }
}
