//! The one signal on which everything ends: SIGTERM (from the kubelet) or SIGINT (from a user).

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Whether the process is to end. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Listens for the signals.
    ///
    /// # Errors
    /// When the process may not handle signals.
    pub fn on_signals() -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("asked to end (SIGTERM)"),
                _ = interrupt.recv() => tracing::info!("asked to end (SIGINT)"),
            }
            sender.send_replace(true);
            sender.closed().await;
        });
        Ok(Self(receiver))
    }

    /// Asked for through `asked`.
    #[cfg(test)]
    pub(crate) fn following(asked: watch::Receiver<bool>) -> Self {
        Self(asked)
    }

    /// Whether it has been asked for.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked for.
    pub fn asked(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.0.clone();
        async move {
            // Without a sender no request to stop can come any more: end, too.
            let _ = receiver.wait_for(|asked| *asked).await;
        }
    }
}
