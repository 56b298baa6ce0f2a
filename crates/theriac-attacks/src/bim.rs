//! Basic iterative method: PGD in Linf from the clean image.
//!
//! ```text
//! x_0 = x,   x_{k+1} = clip(x_k + a * sign(grad_x L(x_k, y)), x - eps, x + eps), then [0, 1]
//! ```
//!
//! Kurakin, Goodfellow & Bengio, "Adversarial examples in the physical world", ICLR 2017
//! workshop. torchattacks clips in another order (floor, ball, ceiling) and lands on the same
//! points; its defaults (10 steps of 2/255) never reach an eps above 20/255.

use theriac::{Budget, Eps, Result};

use crate::{Pgd, Start};

/// BIM with `steps` steps of size `step`. The papers' BIM(N) is `bim(eps, eps.over(N)?, N)`.
///
/// # Errors
/// When `eps` is above 1.
pub fn bim(eps: Eps, step: Eps, steps: u32) -> Result<Pgd> {
    Ok(Pgd {
        start: Start::Clean,
        ..Pgd::new(Budget::linf(eps)?, step, steps)
    })
}
