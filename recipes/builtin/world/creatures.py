"""The creatures: what each of them has of its own on the body that all share (body.py): ears, face, tail, belly."""

from recipes.builtin.world.body import BEAK, LEMON, MAGENTA, ROSE, STEEL, Creature, Look, cheeks, eyes, mouth
from recipes.builtin.world.pen import INK, WHITE, Pen, arc, dark, mix, shade


def _cat_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        tip = (side * 0.25, 0.33)
        pen.blob(((side * 0.29, 0.06), tip, tip, (side * 0.04, 0.21), (side * 0.1, 0.05)), look.colour)
        pen.shape(((side * 0.245, 0.13), (side * 0.235, 0.275), (side * 0.12, 0.2)), ROSE)


def _cat_face(pen: Pen, look: Look) -> None:
    pen.oval(0, -0.1, 0.13, 0.085, look.pale)
    eyes(pen, look, 0.13, 0.0, 0.06)
    pen.blob(((-0.034, -0.052), (0.034, -0.052), (0, -0.09)), (238, 98, 124), outline=False, shaded=False)
    mouth(pen, look, -0.1, 0.09)
    cheeks(pen, 0.21, -0.07)
    for side in (-1, 1):
        for y, tip in ((-0.06, -0.03), (-0.1, -0.12)):
            pen.stroke(((side * 0.2, y), (side * 0.37, tip)), 0.013, INK)


def _cat_tail(pen: Pen, look: Look) -> None:
    points = ((0, 0), (0.16, -0.02), (0.24, 0.14), (0.2, 0.3), (0.27, 0.38))
    pen.limb(points, 0.08, look.colour, 0.07)
    pen.limb(points[-2:], 0.07, look.mark if look.coat else shade(look.colour), 0.065, outline=False)


def _dog_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.blob(
            ((side * 0.17, 0.2), (side * 0.3, 0.16), (side * 0.37, -0.04), (side * 0.31, -0.16), (side * 0.24, -0.02)),
            look.mark,
        )


def _dog_face(pen: Pen, look: Look) -> None:
    pen.blob(((0, 0.2), (0.06, 0.04), (0.13, -0.06), (0, -0.2), (-0.13, -0.06), (-0.06, 0.04)), look.pale, False, False)
    for side in (-1, 1):  # the ears hang before the head
        pen.blob(
            ((side * 0.2, 0.19), (side * 0.3, 0.15), (side * 0.37, -0.05), (side * 0.31, -0.17), (side * 0.25, -0.02)),
            look.mark,
        )
    eyes(pen, look, 0.12, 0.015, 0.055)
    pen.oval(0, -0.05, 0.062, 0.042, INK)
    pen.oval(-0.018, -0.036, 0.018, 0.01, (150, 150, 176))
    mouth(pen, look, -0.11, 0.1)
    if not look.pose.cheering and not look.pose.asleep:
        pen.blob(((-0.03, -0.135), (0.03, -0.135), (0.028, -0.19), (-0.028, -0.19)), (250, 116, 130), True, False)


def _dog_tail(pen: Pen, look: Look) -> None:
    pen.limb(((0, 0), (0.12, 0.05), (0.19, 0.2)), 0.085, look.colour, 0.06)


def _rabbit_ears(pen: Pen, look: Look) -> None:
    bend = look.rng.uniform(-14, 8)
    for side in (-1, 1):
        turn = -side * 12 + (bend if side > 0 else 0)
        ear = pen.frame(side * 0.11, 0.17, turn=turn)
        ear.ball(0, 0.16, 0.078, 0.2, look.colour)
        ear.oval(0, 0.16, 0.038, 0.14, ROSE)


def _rabbit_face(pen: Pen, look: Look) -> None:
    eyes(pen, look, 0.13, 0.01, 0.06)
    for side in (-1, 1):
        pen.oval(side * 0.055, -0.1, 0.07, 0.055, look.pale)
    pen.box(-0.034, -0.185, 0.034, -0.12, INK, 0.015)
    pen.box(-0.024, -0.175, 0.024, -0.12, WHITE, 0.01)
    pen.blob(((-0.034, -0.05), (0.034, -0.05), (0, -0.088)), (238, 98, 124), outline=False, shaded=False)
    cheeks(pen, 0.2, -0.08)


def _puff(pen: Pen, look: Look) -> None:
    pen.ball(0.06, -0.04, 0.085, 0.085, look.pale)


def _bear_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.ball(side * 0.22, 0.18, 0.105, 0.1, look.colour)
        pen.oval(side * 0.22, 0.18, 0.055, 0.052, look.pale)


def _bear_face(pen: Pen, look: Look) -> None:
    pen.oval(0, -0.09, 0.145, 0.105, look.pale)
    pen.oval(0, -0.045, 0.055, 0.038, INK)
    pen.oval(-0.016, -0.033, 0.016, 0.01, (150, 150, 176))
    eyes(pen, look, 0.135, 0.045, 0.048)
    mouth(pen, look, -0.11, 0.085)


def _fox_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        tip = (side * 0.29, 0.36)
        pen.blob(((side * 0.31, 0.05), tip, tip, (side * 0.06, 0.2), (side * 0.1, 0.05)), look.colour)
        pen.shape(((side * 0.292, 0.345), (side * 0.3, 0.23), (side * 0.2, 0.275)), dark(look.colour))
        pen.shape(((side * 0.265, 0.12), (side * 0.262, 0.22), (side * 0.14, 0.18)), look.pale)


def _fox_face(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        cheek = ((0, 0.0), (side * 0.1, -0.055), (side * 0.275, -0.03), (side * 0.17, -0.17), (0, -0.215))
        pen.blob(cheek, mix(look.colour, WHITE, 0.86), outline=False, shaded=False)
    eyes(pen, look, 0.125, 0.01, 0.052)
    pen.oval(0, -0.095, 0.042, 0.032, INK)
    mouth(pen, look, -0.135, 0.075)


def _fox_tail(pen: Pen, look: Look) -> None:
    pen.blob(
        ((-0.02, -0.05), (0.18, -0.1), (0.34, 0.06), (0.34, 0.3), (0.24, 0.22), (0.12, 0.12), (0, 0.05)), look.colour
    )
    pen.blob(((0.345, 0.12), (0.34, 0.3), (0.34, 0.3), (0.235, 0.215), (0.28, 0.17)), (255, 250, 244), False, False)


def _mouse_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.ball(side * 0.28, 0.19, 0.165, 0.165, look.colour)
        pen.oval(side * 0.28, 0.185, 0.11, 0.11, ROSE)


def _mouse_face(pen: Pen, look: Look) -> None:
    eyes(pen, look, 0.1, 0.0, 0.055)
    pen.oval(0, -0.1, 0.085, 0.06, look.pale)
    pen.oval(0, -0.075, 0.04, 0.033, (238, 98, 124))
    mouth(pen, look, -0.12, 0.06)
    for side in (-1, 1):
        for y, tip in ((-0.075, -0.05), (-0.1, -0.12)):
            pen.stroke(((side * 0.11, y), (side * 0.26, tip)), 0.012, INK)


def _mouse_tail(pen: Pen, look: Look) -> None:
    pen.limb(((0, -0.08), (0.18, -0.14), (0.28, -0.02), (0.22, 0.12), (0.32, 0.2)), 0.045, ROSE, 0.025)


def _owl_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        tip = (side * 0.29, 0.3)
        pen.blob(((side * 0.3, 0.06), tip, tip, (side * 0.03, 0.2), (side * 0.1, 0.05)), shade(look.colour))


def _owl_face(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.ball(side * 0.13, -0.01, 0.145, 0.145, (255, 250, 236))
        if look.pose.asleep:
            pen.smile(side * 0.13, -0.02, 0.085, 0.045, 0.026)
        else:
            pen.oval(side * 0.12, -0.01, 0.085, 0.09, BEAK)
            pen.oval(side * 0.12, -0.01, 0.062, 0.068, INK)
            pen.oval(side * 0.12 - 0.024, 0.02, 0.024, 0.026, WHITE)
    pen.blob(((-0.045, -0.07), (0.045, -0.07), (0, -0.17), (0, -0.17)), BEAK)


def _feathers(pen: Pen, look: Look) -> None:
    for x, y in ((-0.07, 0.06), (0.05, 0.06), (-0.01, -0.01), (-0.07, -0.08), (0.05, -0.08)):
        pen.smile(x, y, 0.042, 0.03, 0.018)


def _penguin_ears(pen: Pen, look: Look) -> None:
    pen.limb(((0, 0.2), (0.01, 0.27), (0.06, 0.31)), 0.04, look.colour, 0.02)


def _penguin_face(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.oval(side * 0.1, -0.03, 0.125, 0.14, (255, 252, 250))
    pen.oval(0, -0.12, 0.14, 0.09, (255, 252, 250))
    eyes(pen, look, 0.1, 0.0, 0.052)
    pen.blob(((-0.07, -0.06), (0, -0.04), (0.07, -0.06), (0, -0.12)), BEAK)
    cheeks(pen, 0.17, -0.09)


def _frog_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.ball(side * 0.18, 0.17, 0.115, 0.11, look.colour)


def _frog_face(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        if look.pose.asleep:
            pen.smile(side * 0.18, 0.16, 0.07, 0.035, 0.022)
        else:
            pen.oval(side * 0.18, 0.175, 0.082, 0.08, WHITE)
            pen.oval(side * 0.175, 0.17, 0.052, 0.056, INK)
            pen.oval(side * 0.175 - 0.018, 0.19, 0.018, 0.018, WHITE)
        pen.oval(side * 0.035, 0.0, 0.012, 0.01, dark(look.colour))
    if look.pose.cheering:
        mouth(pen, look, -0.06, 0.16)
    else:
        pen.smile(0, -0.05, 0.2, 0.07, 0.024)
    cheeks(pen, 0.25, -0.04)


def _dragon_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.limb(((side * 0.14, 0.18), (side * 0.2, 0.28), (side * 0.19, 0.37)), 0.085, (255, 236, 190), 0.02)
        fin = ((side * 0.24, 0.08), (side * 0.41, 0.15), (side * 0.41, 0.15), (side * 0.37, 0.0), (side * 0.26, -0.05))
        pen.blob(fin, shade(look.colour))
    for x, y in ((0, 0.24),):
        pen.blob(((x - 0.05, y - 0.05), (x, y + 0.07), (x, y + 0.07), (x + 0.05, y - 0.05)), LEMON)


def _dragon_face(pen: Pen, look: Look) -> None:
    pen.ball(0, -0.1, 0.19, 0.105, look.pale)
    for side in (-1, 1):
        pen.oval(side * 0.06, -0.07, 0.018, 0.014, dark(look.colour))
    eyes(pen, look, 0.135, 0.055, 0.055)
    mouth(pen, look, -0.12, 0.1)
    if not look.pose.cheering:
        for side in (-1, 1):
            pen.shape(((side * 0.1, -0.125), (side * 0.06, -0.13), (side * 0.08, -0.165)), WHITE)


def _dragon_back(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        wing = ((side * 0.1, 0.08), (side * 0.46, 0.26), (side * 0.46, 0.26), (side * 0.4, 0.08), (side * 0.3, 0.06))
        pen.blob((*wing, (side * 0.26, -0.06), (side * 0.1, -0.04)), mix(look.colour, LEMON, 0.55))


def _dragon_tail(pen: Pen, look: Look) -> None:
    pen.limb(((0, -0.06), (0.2, -0.12), (0.32, 0.0), (0.3, 0.14)), 0.15, look.colour, 0.05)
    pen.blob(((0.24, 0.12), (0.29, 0.27), (0.29, 0.27), (0.38, 0.13)), LEMON)


def _plates(pen: Pen, look: Look) -> None:
    for y in (0.07, 0.0, -0.07, -0.13):
        pen.smile(-0.02, y, 0.09 if y < 0.05 else 0.06, 0.018, 0.014)


def _robot_ears(pen: Pen, look: Look) -> None:
    pen.limb(((0, 0.2), (0, 0.31)), 0.035, STEEL)
    pen.ball(0, 0.33, 0.05, 0.05, (250, 92, 84))
    for side in (-1, 1):
        pen.block(side * 0.3 - 0.05, -0.06, side * 0.3 + 0.05, 0.07, STEEL)


def _robot_face(pen: Pen, look: Look) -> None:
    pen.box(-0.24, -0.15, 0.21, 0.11, (52, 58, 92), 0.06)
    for side in (-1, 1):
        if look.pose.asleep:
            pen.stroke(((side * 0.11 - 0.07, 0.0), (side * 0.11 + 0.03, 0.0)), 0.028, (150, 240, 255))
        else:
            pen.oval(side * 0.11 - 0.015, 0.015, 0.056, 0.062, (150, 240, 255))
            pen.oval(side * 0.11 - 0.03, 0.035, 0.02, 0.022, WHITE)
    if look.pose.cheering:
        pen.shape([*arc(-0.015, -0.06, 0.08, 0.06, 0.5, 1.0, 10)], (150, 240, 255))
    else:
        pen.stroke(((-0.08, -0.085), (-0.015, -0.105), (0.05, -0.085)), 0.022, (150, 240, 255))


def _panel(pen: Pen, look: Look) -> None:
    pen.box(-0.12, -0.06, 0.1, 0.1, mix(look.colour, WHITE, 0.72), 0.02)
    for x, light in ((-0.07, (250, 92, 84)), (-0.01, (252, 206, 72)), (0.05, (96, 206, 120))):
        pen.oval(x, 0.05, 0.024, 0.024, light)
    pen.stroke(((-0.08, -0.015), (0.06, -0.015)), 0.02, INK)


def _zib_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.limb(((side * 0.1, 0.2), (side * 0.15, 0.28), (side * 0.22, 0.31)), 0.045, LEMON)
        pen.ball(side * 0.25, 0.32, 0.065, 0.06, LEMON)


def _zib_face(pen: Pen, look: Look) -> None:
    if look.pose.asleep:
        pen.smile(0, 0.04, 0.16, 0.07, 0.03)
    else:
        pen.ball(0, 0.04, 0.165, 0.15, (255, 252, 250))
        pen.oval(0.008, 0.035, 0.098, 0.1, MAGENTA)
        pen.oval(0.008, 0.035, 0.06, 0.062, INK)
        pen.oval(-0.028, 0.075, 0.032, 0.034, WHITE)
    if look.pose.cheering:
        mouth(pen, look, -0.15, 0.1)
    else:
        pen.smile(0, -0.145, 0.12, 0.03, 0.026)


def _zib_belly(pen: Pen, look: Look) -> None:
    _, _, rx, ry = look.pose.body
    pen.oval(-0.01, -0.02, 0.74 * rx, 0.72 * ry, LEMON)
    for y, wide in ((0.07, 0.5), (-0.02, 0.6), (-0.11, 0.42)):
        pen.stroke(((-wide * rx - 0.01, y * ry * 5), (wide * rx - 0.01, y * ry * 5)), 0.034, MAGENTA)


CREATURES: dict[str, Creature] = {
    "cat": Creature(_cat_ears, _cat_face, _cat_tail),
    "dog": Creature(_dog_ears, _dog_face, _dog_tail),
    "rabbit": Creature(_rabbit_ears, _rabbit_face, _puff, head=(0.27, 0.22)),
    "bear": Creature(_bear_ears, _bear_face, head=(0.3, 0.245), limbs=(0.13, 0.12)),
    "fox": Creature(_fox_ears, _fox_face, _fox_tail, head=(0.31, 0.22)),
    "mouse": Creature(_mouse_ears, _mouse_face, _mouse_tail, head=(0.25, 0.215), limbs=(0.085, 0.08)),
    "owl": Creature(_owl_ears, _owl_face, front=_feathers, limbs=(0.14, 0.07), feet=BEAK, head=(0.32, 0.235)),
    "penguin": Creature(_penguin_ears, _penguin_face, limbs=(0.12, 0.06), feet=BEAK, head=(0.27, 0.235)),
    "frog": Creature(_frog_ears, _frog_face, head=(0.34, 0.205), limbs=(0.085, 0.085)),
    "dragon": Creature(_dragon_ears, _dragon_face, _dragon_tail, _dragon_back, _plates, limbs=(0.11, 0.09)),
    "robot": Creature(_robot_ears, _robot_face, front=_panel, hands=STEEL, head=(0.29, 0.205), boxes=True),
    "zib": Creature(_zib_ears, _zib_face, front=_zib_belly, feet=MAGENTA, head=(0.33, 0.27), limbs=(0.085, 0.08)),
}
