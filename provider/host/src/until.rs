use tokio::time::Instant;

/// Resolves at a time; never, if there is none.
pub async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Resolves when there is something new; never for what is not there, or not any more.
pub async fn changed<T>(receiver: &mut Option<tokio::sync::watch::Receiver<T>>) {
    let told = match receiver {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}
