# SPDX-License-Identifier: MIT
"""What the integration tests stand on: real QEMUs, the guest, the command."""
