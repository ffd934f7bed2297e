"""What the two players minimise: adversarial losses and gradient penalties."""
